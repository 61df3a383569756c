// A page of a mapped file that cannot be had ends the process by SIGBUS. Here it ends it by one line that names the
// file, and exit code 1. All that a signal handler may call: system calls, and code that allocates nothing.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { EXIT_CODE = 1, LINE_BYTES = PATH_MAX + 256 };

static struct sigaction before;
static int is_told;

// A line of /proc/self/maps: start-end permissions offset device inode path.
struct Mapping {
  uint64_t start, end, offset;
  char path[PATH_MAX];
};

static const char* read_hex(const char* text, uint64_t* value) {
  for (*value = 0;; ++text) {
    const char c = *text;
    if (c >= '0' && c <= '9') *value = *value * 16 + (uint64_t)(c - '0');
    else if (c >= 'a' && c <= 'f') *value = *value * 16 + (uint64_t)(c - 'a' + 10);
    else return text;
  }
}

static const char* skip_field(const char* text) {
  while (*text != 0 && *text != ' ') ++text;
  while (*text == ' ') ++text;
  return text;
}

// Whether the line is of a file that holds the address.
static int parse(const char* line, uint64_t address, struct Mapping* found) {
  line = read_hex(line, &found->start);
  if (*line != '-') return 0;
  line = read_hex(line + 1, &found->end);
  if (address < found->start || address >= found->end) return 0;
  line = skip_field(line);
  line = skip_field(line);
  read_hex(line, &found->offset);
  for (int field = 0; field < 3; ++field) line = skip_field(line);
  if (*line != '/') return 0;
  strncpy(found->path, line, sizeof found->path - 1);
  found->path[sizeof found->path - 1] = 0;
  return 1;
}

static int find_mapping(uint64_t address, struct Mapping* found) {
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return 0;
  char chunk[1024], line[LINE_BYTES];
  size_t length = 0;
  int is_found = 0;
  ssize_t count;
  while (!is_found && (count = read(maps, chunk, sizeof chunk)) > 0) {
    for (ssize_t i = 0; i < count && !is_found; ++i) {
      if (chunk[i] != '\n') {
        if (length < sizeof line - 1) line[length++] = chunk[i];
        continue;
      }
      line[length] = 0;
      length = 0;
      is_found = parse(line, address, found);
    }
  }
  close(maps);
  return is_found;
}

static char* append(char* to, const char* text) {
  while (*text != 0) *to++ = *text++;
  return to;
}

static char* append_number(char* to, uint64_t number) {
  char digits[20];
  int count = 0;
  do digits[count++] = (char)('0' + number % 10);
  while ((number /= 10) > 0);
  while (count > 0) *to++ = digits[--count];
  return to;
}

// The file's size now, -1 where it is not there any more. The system lists a line break in a name as \012.
static int64_t size_now(const char* listed) {
  char path[PATH_MAX];
  char* end = path;
  while (*listed != 0) {
    const int is_break = strncmp(listed, "\\012", 4) == 0;
    *end++ = is_break ? '\n' : *listed;
    listed += is_break ? 4 : 1;
  }
  *end = 0;
  struct stat now;
  return stat(path, &now) == 0 ? (int64_t)now.st_size : -1;
}

static void end_in_one_line(uint64_t address, const struct Mapping* found) {
  char line[LINE_BYTES + 256];
  const uint64_t place = found->offset + (address - found->start);
  const int64_t num_bytes = size_now(found->path);
  char* end = append(append(line, "error: "), found->path);
  if (num_bytes >= 0 && (uint64_t)num_bytes <= place) {
    end = append(end, ": it was cut to ");
    end = append_number(end, (uint64_t)num_bytes);
    end = append(end, " bytes while it was in use; expected that nobody changes a model in use: start again\n");
  } else {
    end = append(end, ": its disk does not give byte ");
    end = append_number(end, place);
    end = append(end, ", or the file was cut short; check the disk and the file, and start again\n");
  }
  // Threads of one kernel call meet the same hole.
  if (__atomic_exchange_n(&is_told, 1, __ATOMIC_SEQ_CST)) {
    for (;;) pause();
  }
  // What cannot be written cannot be told either.
  for (const char* at = line; at < end;) {
    const ssize_t count = write(STDERR_FILENO, at, (size_t)(end - at));
    if (count <= 0 && errno != EINTR) break;
    if (count > 0) at += count;
  }
  _exit(EXIT_CODE);
}

static void on_bus_error(int number, siginfo_t* info, void* context) {
  (void)context;
  struct Mapping found;
  if (info->si_code > 0 && find_mapping((uint64_t)(uintptr_t)info->si_addr, &found))
    end_in_one_line((uint64_t)(uintptr_t)info->si_addr, &found);
  // No file's: whoever was there before sees the same fault again, or the same signal.
  sigaction(SIGBUS, &before, NULL);
  if (info->si_code <= 0) raise(number);
}

// Returns 0, or an errno.
EXPORT int potluck_end_lost_pages_in_one_line(void) {
  struct sigaction action, present;
  if (sigaction(SIGBUS, NULL, &present) != 0) return errno;
  if ((present.sa_flags & SA_SIGINFO) != 0 && present.sa_sigaction == on_bus_error) return 0;
  before = present;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  return sigaction(SIGBUS, &action, NULL) == 0 ? 0 : errno;
}
