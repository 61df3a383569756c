// The Vercel AI SDK with each of its providers; prints a JSON object for each thing tried.
// Reads CLIENTS_URL, CLIENTS_KEY and CLIENTS_MODEL.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";

const { CLIENTS_URL: url, CLIENTS_KEY: apiKey, CLIENTS_MODEL: name } = process.env;
const prompt = "How warm is it in Oslo? Use the tool if there is one.";
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey });
const compatible = createOpenAICompatible({
  baseURL: `${url}/v1`, apiKey, name: "potluck", includeUsage: true, supportsStructuredOutputs: true,
});
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey });
const models = {
  "openai, responses": openai.responses(name),
  "openai, chat": openai.chat(name),
  "openai-compatible": compatible(name),
  anthropic: anthropic(name),
};
const weather = ai.tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `4 degrees in ${city}`,
});

async function trial(client, what, work) {
  let outcome;
  try {
    const found = await work();
    outcome = { ok: Boolean(found), detail: found ? "" : "empty" };
  } catch (error) {
    outcome = { ok: false, detail: `${error.name}: ${error.message}`.slice(0, 300) };
  }
  console.log(JSON.stringify({ client: `Vercel AI SDK, ${client}`, what, ...outcome }));
}

for (const [client, model] of Object.entries(models)) {
  await trial(client, "generateText", async () => (await ai.generateText({ model, prompt })).text);
  await trial(client, "streamText, usage", async () => {
    const result = ai.streamText({ model, prompt, onError: ({ error }) => { throw error; } });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return text && (await result.usage).outputTokens > 0;
  });
  for (const way of ["generateText", "streamText"]) {
    await trial(client, `${way}, a tool and its result`, async () => {
      const result = await ai[way]({ model, prompt, tools: { weather }, stopWhen: ai.stepCountIs(3) });
      const steps = await result.steps;
      return steps.some((step) => step.toolResults.length > 0) && (await result.text);
    });
  }
  await trial(client, "a schema's object", async () => {
    const schema = z.object({ city: z.string(), people: z.number() });
    const made = await ai.generateText({ model, prompt, output: ai.Output.object({ schema }) });
    return made.output.city;
  });
}
