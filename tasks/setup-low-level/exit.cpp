// Ends nixlbench before the destructors of its libraries run: NIXL's wheel brings a libnl-route beside the system's,
// which EFA's libraries load, and the destructor of one uses what the other has freed.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <unistd.h>

namespace {
void leave(int status, void *) {
    std::cout.flush();
    std::fflush(nullptr);
    _exit(status);
}

// Registered first, it is called last, when everything else of nixlbench has ended.
__attribute__((constructor(101))) void prepare() { on_exit(leave, nullptr); }
} // namespace
