"""Pictures of the server's page over an invented cluster, and what a browser says of it.

    PYTHONPATH=ENV/lib/python3.11/site-packages python -m benchmarks.page_screenshots OUT [--chromium PATH]
    python -m benchmarks.page_screenshots --serve

The first needs Debian's `chromium`, and an environment ENV of its own that has `playwright`. It writes the
page light, dark, of a phone and asking for a key, chats, and moves over the map by keys. It fails where the
browser reports an error, the page is wider than the window, something jumps, or a hidden page goes on asking.
The second serves the page until it is interrupted.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.api.keys import make_key
from orchestrator.api.settings import ApiSettings
from orchestrator.serving.answer import Finished, Reasoning, Started, Text, Usage
from orchestrator.serving.request import GenerationRequest
from orchestrator.serving.state import BoxState, Event, RequestState, ServerState, Totals
from tests.orchestrator.api.scripted import Script, Scripted
from tests.orchestrator.api.serving import served

BOXES = (("head", 1.0), ("workstation", 2.2), ("attic-ram", 0.6), ("closet", 0.7), ("<b>den</b>", 0.4))
LAYERS, EXPERTS = 42, 288
STEP_PARTS_S: Mapping[str, float] = {
    "attention": 0.008,
    "router": 0.001,
    "shared_expert": 0.002,
    "local_experts": 0.011,
    "dispatch": 0.002,
    "wire": 0.001,
    "remote_wait": 0.014,
    "dense_ffn": 0.001,
    "mtp": 0.004,
    "lm_head": 0.003,
    "sampling": 0.001,
    "other": 0.0006,
}
STEP_S = sum(STEP_PARTS_S.values())
SECTION_TOPS = """
    [...document.querySelectorAll("section:not([hidden])")]
        .map((s) => s.getBoundingClientRect().top + scrollY)
"""
# What a browser does with a tab that is in the background.
HIDE = """
    Object.defineProperty(document, "hidden", { value: true });
    document.dispatchEvent(new Event("visibilitychange"));
"""


class Invented:
    """Fulfils `StateSource`: five boxes with Step-3.5-Flash's experts, one of them lost."""

    def __init__(self) -> None:
        self.asked = 0
        self._began_s = time.monotonic()
        dice = random.Random(7)
        weights = [weight for _, weight in BOXES]
        self._places = [dice.choices(range(len(BOXES)), weights, k=EXPERTS) for _ in range(LAYERS)]
        for expert in range(40, 46):
            self._places[12][expert] = -1
        self._heat = [self._layer(dice) for _ in range(LAYERS)]

    def state(self) -> ServerState:
        self.asked += 1
        now_s = time.monotonic() - self._began_s
        steps = int(1000 + now_s / STEP_S)
        speed = 31 + 6 * math.sin(now_s / 9) + 2 * math.sin(now_s * 1.7)
        return ServerState(
            model="Step-3.5-Flash, q4_k",
            up_s=93_000 + now_s,
            tokens_per_s=speed,
            waiting=2,
            running=5,
            requests=[self._request(number, now_s) for number in range(7)],
            boxes=self._boxes(),
            totals=Totals(
                finished={"stop": 1204, "length": 31, "tool_calls": 402, "lost": 2},
                refused={"busy": 12, "too_long": 3},
                prompt_tokens=8_120_333,
                cached_tokens=5_600_120,
                generated_tokens=812_044,
                drafted=(300_000, 240_000, 150_000),
                accepted=(246_000, 153_000, 72_000),
                steps=steps,
                step_s=steps * STEP_S,
                step_parts_s={name: steps * part_s for name, part_s in STEP_PARTS_S.items()},
            ),
            kv_used_bytes=3_420_000_000,
            kept_bytes=1_900_000_000,
            kv_budget_bytes=8_000_000_000,
            moe_layers=list(range(3, 3 + LAYERS)),
            places=self._places,
            heat=self._heat,
            events=[
                Event(
                    4 + now_s,
                    "den: died: its connection closed; 1,512 experts are served by their other holders",
                ),
                Event(66 + now_s, "closet: suspected, silent for 0.25 s"),
                Event(66 + now_s, "closet: cleared"),
                Event(5000 + now_s, "attic-ram: joined with 2,020 experts"),
            ],
        )

    def _layer(self, dice: random.Random) -> list[float]:
        drawn = [dice.lognormvariate(0, 1.1) for _ in range(EXPERTS)]
        whole = sum(drawn)
        return [share / whole for share in drawn]

    def _boxes(self) -> Sequence[BoxState]:
        held = [sum(row.count(box) for row in self._places) for box in range(len(BOXES))]
        return [
            BoxState(
                name,
                "den" if "den" in name else name,
                "lost" if "den" in name else "serving",
                held[at],
                held[at] * 8_650_000,
                int(held[at] * 8_650_000 * (1.05 + 0.3 * at)),
                held[at] / sum(held),
                None if at == 0 else 0.0003 * (1 + at * at),
            )
            for at, (name, _) in enumerate(BOXES)
        ]

    def _request(self, number: int, now_s: float) -> RequestState:
        writing, written = number < 4, int((120 * number + 8 * now_s) % 2048)
        prompt = 900 + 5000 * number
        return RequestState(
            number=1640 + number,
            client=("ann", "bob", "<img src=x onerror=alert(1)>", "a-client-with-quite-a-long-name")[
                number % 4
            ],
            place="writing" if writing else "reading" if number == 4 else "waiting",
            age_s=3 * number + now_s,
            prompt_tokens=prompt,
            computed_tokens=prompt if writing else prompt // 3 if number == 4 else 0,
            cached_tokens=prompt // 2,
            generated_tokens=written if writing else 0,
            max_tokens=2048,
            drafted=(written, written // 2) if writing else (),
            accepted=(int(written * 0.8), int(written * 0.25)) if writing else (),
        )


def script(request: GenerationRequest) -> Script:
    """Thinks, then answers, at the pace of a fast reader."""
    del request
    thought = "The user greets me. I should greet back, and say <i>nothing</i> else."
    text = (
        "Hello! Your boxes are doing well: four of five serve, and nobody misses the fifth.\n\n- one\n- two"
    )
    steps: list[Any] = [Started(20, 5)]
    for word in thought.split(" "):
        steps += [Reasoning(f"{word} "), 0.01]
    for word in text.split(" "):
        steps += [Text(f"{word} "), 0.01]
    return [*steps, Finished("stop", Usage(20, 5, 40, 18, 30, 21))]


def ranking() -> Mapping[str, Any]:
    """As `potluck whatif --json` gives it."""
    now = {
        "what": "as it is",
        "price": None,
        "place": None,
        "verdict": None,
        "tokens_per_s": 31.2,
        "range": {"low": 26.5, "high": 35.9},
        "remote_layers_per_token": 30.1,
        "note": "",
    }
    cable: dict[str, Any] = {"what": "closet: a cable in place of Wi-Fi", "price": 20.0, "tokens_per_s": 38.9}
    cable |= {"place": 1, "verdict": "faster", "range": {"low": 33.1, "high": 44.7}}
    more: dict[str, Any] = {"what": "RAM of closet-ram: 32 GB to 64 GB", "price": None, "tokens_per_s": 32.4}
    more |= {"place": None, "verdict": "no difference we can promise", "range": {"low": 27.5, "high": 37.3}}
    gone = {
        "what": "without workstation",
        "price": None,
        "place": None,
        "verdict": "does not fit",
        "tokens_per_s": None,
        "range": None,
        "remote_layers_per_token": None,
    }
    return {
        "workload": {},
        "now": {**now, "gain": 0.0},
        "changes": [
            {**cable, "remote_layers_per_token": 30.1, "note": "", "gain": 0.247},
            {**more, "remote_layers_per_token": 27.9, "note": "", "gain": 0.038},
            {**gone, "note": "41.2 GB too little", "gain": None},
        ],
    }


def look(url: str, chromium: str, out: Path, key: str, source: Invented) -> list[str]:
    """Write the pictures; what is wrong. `source`: of the server."""
    wrong: list[str] = []
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, width, height, scheme in (
            ("light", 1280, 900, "light"),
            ("dark", 1280, 900, "dark"),
            ("phone", 390, 844, "light"),
            ("phone-dark", 390, 844, "dark"),
        ):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.on("console", partial(_note_error, wrong, name))
            page.on("pageerror", partial(_note, wrong, name))
            page.on("dialog", partial(_note, wrong, name))
            page.goto(url)
            if key:
                # The browser reports each 401, as it should.
                page.locator("#ask").wait_for()
                page.screenshot(path=out / f"key-{name}.png")
                page.fill("#key", "wrong")
                page.keyboard.press("Enter")
                page.locator("#key-words", has_text="does not know").wait_for()
                page.fill("#key", key)
                page.keyboard.press("Enter")
                wrong[:] = [line for line in wrong if "401" not in line]
            page.locator("#standing.good").wait_for()
            tops = page.evaluate(SECTION_TOPS)
            _use(page)
            if page.evaluate(SECTION_TOPS)[: len(tops)] != tops:
                wrong.append(f"{name}: something jumps")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wrong.append(f"{name}: wider than the window")
            if page.locator("td b, img, li b").count():
                wrong.append(f"{name}: markup of a peer is in the page")
            page.click("#rank")
            page.locator("#changes tr").nth(4).wait_for()
            page.screenshot(path=out / f"{name}.png", full_page=True)
            page.evaluate(HIDE)
            page.wait_for_timeout(1500)
            asked = source.asked
            page.wait_for_timeout(2500)
            if source.asked != asked:
                wrong.append(f"{name}: a hidden page goes on asking")
            page.close()
        browser.close()
    return wrong


def _note_error(wrong: list[str], name: str, said: Any) -> None:
    if said.type == "error":
        _note(wrong, name, said.text)


def _note(wrong: list[str], name: str, what: object) -> None:
    wrong.append(f"{name}: {what}")


def _use(page: Any) -> None:
    """Chat, move over the map, look at one box, rank changes; without a mouse where that is possible."""
    page.fill("#message", "Hello, how are <b>you</b>?")
    page.focus("#message")
    page.keyboard.press("Enter")
    page.locator("#talk small", has_text="a second").wait_for()
    page.focus("#cells")
    for press in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(press)
    page.locator("#readout", has_text="layer 5, expert 2").wait_for()
    page.locator("#boxes button").nth(1).press("Enter")
    page.locator("#boxes button[aria-pressed=true]").press("Enter")
    page.wait_for_timeout(3000)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--serve", action="store_true")
    given = parser.parse_args()
    text, kept = make_key("ann")
    wrong = []
    for key, keys in (("", ()), (text, (kept,))):
        settings = ApiSettings(port=0, grace_s=0.0, keys=keys)
        source = Invented()
        with served(Scripted(script), settings, source=source, whatif=ranking) as server:
            if given.serve:
                print(server.url)
                server.join()
            elif given.out is None:
                parser.error("expected OUT or --serve")
            else:
                given.out.mkdir(parents=True, exist_ok=True)
                wrong += look(server.url, given.chromium, given.out, key, source)
    print(*wrong or ["nothing is wrong"], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
