// Says what a bus error means in a process that has mapped files, before it dies of it.
#include <csignal>
#include <unistd.h>

#include "vectors.h"

namespace {

void explain(int) {
    const char text[] = "phiscope: a weight file was cut while it was in use, mapped into memory\n";
    [[maybe_unused]] ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    signal(SIGBUS, SIG_DFL);  // the access is tried again, and fails for good
}

}  // namespace

// Where nobody else handles it.
EXPORT void explain_bus_errors() {
    struct sigaction found;
    if (sigaction(SIGBUS, nullptr, &found) == 0 && found.sa_handler == SIG_DFL) signal(SIGBUS, explain);
}
