/* For user-mode Linux on CPUs whose register state is larger than it knows.
 *
 * It sets a process's floating-point registers from a buffer of a fixed size, and Linux refuses one that is shorter than the
 * whole state of the CPU (EFAULT; "ptrace set fp regs failed, errno = 14" on CPUs with AMX). So what is missing is taken from
 * the process itself. Loaded with LD_PRELOAD by boot.sh.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static long (*next)(int, pid_t, void *, void *);

__attribute__((constructor)) static void find(void) { next = (long (*)(int, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace"); }

long ptrace(enum __ptrace_request request, ...) {
  va_list list;
  va_start(list, request);
  pid_t process = va_arg(list, pid_t);
  void *address = va_arg(list, void *);
  void *data = va_arg(list, void *);
  va_end(list);
  if ((int)request == PTRACE_SETREGSET && (unsigned long)address == NT_X86_XSTATE) {
    /* Static: the kernel's stacks are small, and only one of its threads does this. */
    static char state[1 << 16] __attribute__((aligned(64)));
    struct iovec *given = data;
    struct iovec whole = {state, sizeof state};
    if (next(PTRACE_GETREGSET, process, address, &whole) == 0 && whole.iov_len > given->iov_len) {
      memcpy(state, given->iov_base, given->iov_len);
      return next(request, process, address, &whole);
    }
  }
  return next(request, process, address, data);
}
