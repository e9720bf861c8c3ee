// Linux, liburing and libaio for Swift. Apart from a string for the commit this is the only C of the project: declarations come
// from the system's headers, and everything that Swift cannot import (variadic functions, function-like macros) gets a static
// inline function here.
#ifndef CLINUX_H
#define CLINUX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

// Two headers define a type differently if _GNU_SOURCE is set. Swift's own Glibc module includes them without it, and if one
// compiler process builds both modules, as in a fresh build, two different definitions are an error. So these two are included
// here in the same way as in that module, before anything else includes them.
#include <features.h>
#pragma push_macro("__USE_XOPEN")
#undef __USE_XOPEN
#include <sys/select.h>
#pragma pop_macro("__USE_XOPEN")
#pragma push_macro("__USE_GNU")
#undef __USE_GNU
#include <sys/resource.h>
#pragma pop_macro("__USE_GNU")

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/io_uring.h> // before liburing: its older copy has the same guard, and swift-system sees the kernel's, too
#include <liburing.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// The CPU's time stamp counter, in its own ticks: a few instructions without any ordering, cheap enough to be read with every
// batch. 0 if there is none.
static inline uint64_t clinux_ticks(void) {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t ticks;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return 0;
#endif
}

// Eight bytes at any address, read exactly once: volatile, so that the compiler neither repeats nor splits the load.
typedef uint64_t __attribute__((aligned(1), may_alias)) clinux_unaligned64;
static inline uint64_t clinux_load_once(const void *pointer) { return *(const volatile clinux_unaligned64 *)pointer; }


// The arguments of the program, which glibc passes to every constructor: Swift reads them from /proc, which may not be mounted.
// The constructor is compiled into each module that uses this.
static inline char **clinux_arguments(char **arguments) {
  static char **saved;
  if (arguments) saved = arguments;
  return saved;
}
__attribute__((constructor, used)) static void clinux_save_arguments(int count, char **arguments) {
  (void)count;
  clinux_arguments(arguments);
}
// The argument with this number, or NULL after the last one.
static inline const char *clinux_argument(int number) {
  (void)&clinux_save_arguments;
  char **arguments = clinux_arguments(NULL);
  return arguments ? arguments[number] : NULL;
}

// open and fcntl are variadic.
static inline int clinux_open(const char *path, int flags, mode_t mode) { return open(path, flags, mode); }
static inline int clinux_openat(int folder, const char *path, int flags) { return openat(folder, path, flags); }
static inline int clinux_fcntl_lock(int fd, int command, struct flock *lock) { return fcntl(fd, command, lock); }
static inline int clinux_fcntl_int(int fd, int command, int value) { return fcntl(fd, command, value); }

// ioctl is variadic, and the request numbers are function-like macros.
static inline int clinux_block_size64(int fd, uint64_t *bytes) { return ioctl(fd, BLKGETSIZE64, bytes); }
static inline int clinux_block_logical_size(int fd, int *bytes) { return ioctl(fd, BLKSSZGET, bytes); }
static inline int clinux_block_physical_size(int fd, unsigned int *bytes) { return ioctl(fd, BLKPBSZGET, bytes); }
static inline int clinux_block_read_only(int fd, int *yes) { return ioctl(fd, BLKROGET, yes); }
static inline int clinux_block_discard(int fd, uint64_t offset, uint64_t length) {
  uint64_t range[2] = {offset, length};
  return ioctl(fd, BLKDISCARD, range);
}

// syscall is variadic. The futex words here are shared between processes, so never FUTEX_PRIVATE_FLAG.
// timeout_ns < 0 waits without limit. Both return -errno on failure.
static inline int clinux_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns) {
  struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
  long rc = syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &limit, NULL, 0);
  return rc < 0 ? -errno : (int)rc;
}
static inline int clinux_futex_wake(uint32_t *word, int count) {
  long rc = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
  return rc < 0 ? -errno : (int)rc;
}

// Waits for two words at once (Linux 5.16): one that is shared between processes and one that is private to this process.
// Returns when either was woken, with -EAGAIN if either does not have the expected value, or with another -errno.
static inline int clinux_futex_wait_either(uint32_t *shared, uint32_t expected, uint32_t *own, uint32_t expected_own) {
  struct { uint64_t value, address; uint32_t flags, reserved; } words[2] = {
      {expected, (uint64_t)(uintptr_t)shared, 2 /* FUTEX_32 */, 0},
      {expected_own, (uint64_t)(uintptr_t)own, 2 | FUTEX_PRIVATE_FLAG, 0},
  };
  long rc = syscall(449 /* futex_waitv */, words, 2, 0, NULL, CLOCK_MONOTONIC);
  return rc < 0 ? -errno : (int)rc;
}
static inline int clinux_futex_wake_own(uint32_t *word, int count) {
  long rc = syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NULL, NULL, 0);
  return rc < 0 ? -errno : (int)rc;
}

// Filters of system calls: libseccomp's comparisons are C initializers, and its actions are macros. A call is allowed if an
// argument, masked, has the value. Returns -errno on failure.
static inline int clinux_allow_if(scmp_filter_ctx filter, int call, unsigned argument, uint64_t mask, uint64_t value) {
  struct scmp_arg_cmp condition = {argument, SCMP_CMP_MASKED_EQ, mask, value};
  return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, 1, &condition);
}
static inline int clinux_answer_with(scmp_filter_ctx filter, int call, int code) {
  return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(code), call, 0, NULL);
}
static const uint32_t clinux_act_allow = SCMP_ACT_ALLOW;
static const uint32_t clinux_act_log = SCMP_ACT_LOG;
static const uint32_t clinux_act_kill_process = SCMP_ACT_KILL_PROCESS;
// The ioctls for block devices.
static const uint64_t clinux_block_questions[] = {BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, BLKROGET, BLKDISCARD};
static const int clinux_no_such_call = __NR_SCMP_ERROR;
// Installs a compiled filter for the calling thread and the threads that it creates. This process runs no untrusted code, so
// the mitigation of speculative store bypass is not needed: with SPEC_ALLOW, memory stays as fast as without the filter.
// Returns -errno on failure.
static inline int clinux_install_filter(void *program, unsigned short instructions) {
  struct { unsigned short count; void *first; } filter = {instructions, program};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) < 0 ? -errno : 0;
}

// Any system call, for tests of forbidden calls.
static inline long clinux_probe_call(long call, long first, long second, long third) {
  return syscall(call, first, second, third, 0, 0, 0);
}

// Landlock (Linux 5.13); rights that are newer than the headers have their numbers in FileRights.swift.
static inline int clinux_landlock_version(void) {
  long rc = syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
  return rc < 0 ? -errno : (int)rc;
}
// `size`: as many bytes of the three words as the kernel's version knows.
static inline int clinux_landlock_ruleset(uint64_t files, uint64_t ports, uint64_t scopes, size_t size) {
  uint64_t words[3] = {files, ports, scopes};
  long rc = syscall(SYS_landlock_create_ruleset, words, size, 0);
  return rc < 0 ? -errno : (int)rc;
}
static inline int clinux_landlock_allow(int ruleset, int place, uint64_t rights) {
  struct __attribute__((packed)) { uint64_t rights; int32_t place; } rule = {rights, place};
  return syscall(SYS_landlock_add_rule, ruleset, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0) < 0 ? -errno : 0;
}
static inline int clinux_landlock_restrict(int ruleset) {
  return syscall(SYS_landlock_restrict_self, ruleset, 0) < 0 ? -errno : 0;
}

// Reduces the calling thread's permitted and effective capabilities to the kept ones. Returns -errno on failure.
static inline int clinux_keep_capabilities(uint64_t kept) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) < 0) return -errno;
  for (int word = 0; word < 2; word++) {
    sets[word].permitted &= (uint32_t)(kept >> (32 * word));
    sets[word].effective = sets[word].permitted;
    sets[word].inheritable = 0;
  }
  return syscall(SYS_capset, &header, sets) < 0 ? -errno : 0;
}
// The calling thread's effective capabilities, one bit for each.
static inline uint64_t clinux_capabilities(void) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets) < 0) return 0;
  return (uint64_t)sets[1].effective << 32 | sets[0].effective;
}
// Drops a capability from the bounding set, so that even a program that is started cannot get it. Negative beyond the last one
// that the kernel knows.
static inline int clinux_drop_bound(int capability) { return prctl(PR_CAPBSET_DROP, capability, 0, 0, 0); }
// Removes the limit of locked memory, before the capability to exceed it is given up.
static inline int clinux_lift_lock_limit(void) {
  struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
  return setrlimit(RLIMIT_MEMLOCK, &none);
}
static inline int clinux_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }

// Debian 12's glibc declares these; Swift's overlay does not have all of them with the same signature.
static inline int clinux_pin_thread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < 0 || cpu >= CPU_SETSIZE) return -EINVAL;
  CPU_SET(cpu, &set);
  return -pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Sets the scheduler slice of the calling thread to `nanoseconds`, for when other threads want the same CPU; its weight and its
// policy stay. Returns 0 or a negative errno. Kernels before 6.12 accept it and do nothing.
static inline int clinux_ask_for_slice(uint64_t nanoseconds) {
  // The first version of the kernel's struct sched_attr, which the C library does not declare.
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return -errno;
  // A real-time policy has no slices.
  if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return 0;
  attributes.runtime = nanoseconds;
  return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0 ? 0 : -errno;
}

// How many CPUs this process may run on; 0 if that is unknown.
static inline int clinux_usable_processors(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

// The enumeration of getrusage differs between Swift's overlay and _GNU_SOURCE, so the system call is used directly. For the
// calling thread, or for the whole process: CPU time in nanoseconds, and context switches of both kinds.
static inline void clinux_usage(int whole_process, uint64_t *user, uint64_t *system, uint64_t *switches) {
  struct rusage usage;
  memset(&usage, 0, sizeof usage);
  syscall(SYS_getrusage, whole_process ? 0 : 1, &usage);
  *user = (uint64_t)usage.ru_utime.tv_sec * 1000000000u + (uint64_t)usage.ru_utime.tv_usec * 1000u;
  *system = (uint64_t)usage.ru_stime.tv_sec * 1000000000u + (uint64_t)usage.ru_stime.tv_usec * 1000u;
  *switches = (uint64_t)usage.ru_nvcsw + (uint64_t)usage.ru_nivcsw;
}

// Major page faults of the calling thread: those that had to wait for a medium.
static inline uint64_t clinux_thread_major_faults(void) {
  struct rusage usage;
  memset(&usage, 0, sizeof usage);
  syscall(SYS_getrusage, 1, &usage);
  return (uint64_t)usage.ru_majflt;
}

// The process at the other end of a connected UNIX socket; 0 if the kernel does not tell.
static inline int clinux_peer_process(int socket) {
  struct ucred peer;
  socklen_t size = sizeof peer;
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? (int)peer.pid : 0;
}

// With _GNU_SOURCE an address argument is a transparent union, which Swift cannot pass. Returns -errno on failure.
static inline int clinux_accept(int listener) {
  int rc = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  return rc < 0 ? -errno : rc;
}

// CMSG_* are function-like macros. Sends `count` descriptors with the bytes and never blocks, whatever the flags of the socket
// are, which other processes may set. Returns bytes sent or -errno.
static inline ssize_t clinux_send_with_fds(int socket, const void *bytes, size_t length, const int *fds, size_t count) {
  if (count > 64) return -EINVAL;
  struct iovec part = {(void *)bytes, length};
  union { char bytes[CMSG_SPACE(64 * sizeof(int))]; struct cmsghdr align; } control;
  struct msghdr message = {0};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count > 0) {
    memset(&control, 0, sizeof control);
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
  }
  ssize_t rc = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  return rc < 0 ? -errno : rc;
}

// Receives up to `length` bytes and up to `capacity` descriptors (close-on-exec), and stores their number in *count.
// Descriptors beyond the capacity are closed and *truncated is set. Returns bytes received, 0 at the end, or -errno.
static inline ssize_t clinux_receive_with_fds(int socket, void *bytes, size_t length, int flags, int *fds, size_t capacity,
                                              size_t *count, int *truncated) {
  struct iovec part = {bytes, length};
  union { char bytes[CMSG_SPACE(253 * sizeof(int))]; struct cmsghdr align; } control;
  struct msghdr message = {0};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  *count = 0;
  *truncated = 0;
  ssize_t rc = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (rc < 0) return -errno;
  if (message.msg_flags & MSG_CTRUNC) *truncated = 1;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < n; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      if (*count < capacity) fds[(*count)++] = fd;
      else { close(fd); *truncated = 1; }
    }
  }
  return rc;
}

// The alignment for O_DIRECT according to statx (Linux 6.1). Returns 1 if it is known (0 in both: no direct I/O here), 0 if
// this file system does not tell.
static inline int clinux_direct_io_alignment(int fd, uint32_t *memory, uint32_t *offset) {
  struct statx answer;
  memset(&answer, 0, sizeof answer);
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &answer) != 0) return 0;
  if (!(answer.stx_mask & STATX_DIOALIGN)) return 0;
  *memory = answer.stx_dio_mem_align;
  *offset = answer.stx_dio_offset_align;
  return 1;
}

// When a file was created, nanoseconds since 1970; 0 if the file system does not store that.
static inline uint64_t clinux_birth_time(int fd) {
  struct statx answer;
  memset(&answer, 0, sizeof answer);
  if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &answer) != 0 || !(answer.stx_mask & STATX_BTIME)) return 0;
  return (uint64_t)answer.stx_btime.tv_sec * 1000000000u + answer.stx_btime.tv_nsec;
}

// The length of a file in bytes, or a negative errno. Nothing else is asked for: once somebody has seen the time of the last
// change, the next write has to change it and to journal that (ext4, XFS and others since Linux 6.13).
static inline int64_t clinux_file_length(int fd) {
  struct statx answer;
  memset(&answer, 0, sizeof answer);
  if (statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &answer) == 0) return (int64_t)answer.stx_size;
  // Some sandboxes forbid statx.
  struct stat older;
  return fstat(fd, &older) == 0 ? older.st_size : -errno;
}

// Linux 5.14.
static const int clinux_madv_populate_read = MADV_POPULATE_READ;

// Prefetches the first cache lines of a buffer.
static inline void clinux_prefetch(const void *place, unsigned int lines) {
  for (unsigned int line = 0; line < lines; line++) __builtin_prefetch((const char *)place + 64 * line, 0, 3);
}

// Pointers into four buffers.
typedef struct {
  void *first, *second, *third, *fourth;
} clinux_four;

typedef long long clinux_vector __attribute__((vector_size(16), aligned(1), may_alias));
typedef long long clinux_aligned_vector __attribute__((vector_size(16), aligned(16), may_alias));

// Copies four buffers at once, a cache line of each in turn, and prefetches the next four into the second-level cache in the
// meantime. A single copy waits for its few outstanding cache lines; four of them, and the prefetches, keep all of the CPU's
// line fill buffers busy. The size of each is a multiple of 64 bytes.
static __attribute__((noinline)) void clinux_copy_four(clinux_four to, clinux_four from, clinux_four next, size_t count) {
#define CLINUX_COPY_LINE(which)                                                                                              \
  do {                                                                                                                       \
    __builtin_prefetch((const char *)next.which + at, 0, 2);                                                                 \
    const clinux_vector *source = (const clinux_vector *)((const char *)from.which + at);                                    \
    clinux_vector *target = (clinux_vector *)((char *)to.which + at);                                                        \
    clinux_vector a = source[0], b = source[1], c = source[2], d = source[3];                                                \
    target[0] = a, target[1] = b, target[2] = c, target[3] = d;                                                              \
  } while (0)
  for (size_t at = 0; at < count; at += 64) {
    CLINUX_COPY_LINE(first);
    CLINUX_COPY_LINE(second);
    CLINUX_COPY_LINE(third);
    CLINUX_COPY_LINE(fourth);
  }
#undef CLINUX_COPY_LINE
}

// Copies with non-temporal stores, for a target that this CPU does not read soon: the old contents of a cache line are not
// fetched only to be overwritten. Unlike other stores, these are not ordered with later ones before clinux_streamed.
static __attribute__((noinline)) void clinux_copy_around_cache(void *to, const void *from, size_t count) {
#if defined(__x86_64__)
  char *target = (char *)to;
  const char *source = (const char *)from;
  size_t head = -(uintptr_t)target & 63;
  if (count < 128 + head) { memcpy(to, from, count); return; }
  if (head > 0) {
    memcpy(target, source, head);
    target += head;
    source += head;
    count -= head;
  }
  for (; count >= 64; count -= 64, target += 64, source += 64) {
    clinux_vector a = *(const clinux_vector *)source, b = *(const clinux_vector *)(source + 16);
    clinux_vector c = *(const clinux_vector *)(source + 32), d = *(const clinux_vector *)(source + 48);
    __builtin_nontemporal_store((clinux_aligned_vector)a, (clinux_aligned_vector *)target);
    __builtin_nontemporal_store((clinux_aligned_vector)b, (clinux_aligned_vector *)(target + 16));
    __builtin_nontemporal_store((clinux_aligned_vector)c, (clinux_aligned_vector *)(target + 32));
    __builtin_nontemporal_store((clinux_aligned_vector)d, (clinux_aligned_vector *)(target + 48));
  }
  if (count > 0) memcpy(target, source, count);
#else
  memcpy(to, from, count);
#endif
}
static inline void clinux_streamed(void) {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// si_addr is a macro.
static inline void *clinux_fault_address(const siginfo_t *info) { return info ? info->si_addr : NULL; }

// Codes of SIGBUS: the values of an enumeration that Swift's own Glibc module may have claimed already.
static const int clinux_bus_adrerr = BUS_ADRERR;
static const int clinux_bus_objerr = BUS_OBJERR;
static const int clinux_bus_mceerr_ar = BUS_MCEERR_AR;

// Names for macros that Swift does not import.
static const unsigned int clinux_sqe_fixed_file = 1u << IOSQE_FIXED_FILE_BIT;
static const int clinux_o_direct = O_DIRECT;
static const int clinux_o_path = O_PATH;
static const int clinux_f_getpipe_sz = F_GETPIPE_SZ;
static const int clinux_ofd_setlk = F_OFD_SETLK;
static const int clinux_ofd_getlk = F_OFD_GETLK;
static const int clinux_rwf_dsync = RWF_DSYNC;
static const int clinux_rwf_nowait = RWF_NOWAIT;

// Discards entries that were prepared and not submitted.
static inline void clinux_forget_prepared(struct io_uring *ring) {
  ring->sq.sqe_tail = ring->sq.sqe_head = __atomic_load_n(ring->sq.khead, __ATOMIC_ACQUIRE);
  __atomic_store_n(ring->sq.ktail, ring->sq.sqe_tail, __ATOMIC_RELEASE);
}

// io_uring operations that are newer than liburing 2.3, by number (Linux 6.7).
static const int clinux_op_futex_wait = 51;
static inline void clinux_prep_futex_wait(struct io_uring_sqe *sqe, const uint32_t *word, uint32_t expected) {
  io_uring_prep_rw(clinux_op_futex_wait, sqe, 2 /* FUTEX2_SIZE_U32 */, word, 0, expected);
  sqe->addr3 = 0xffffffffu;
}

// Anonymous unions are not imported.
static inline void clinux_sqe_set_rw_flags(struct io_uring_sqe *sqe, int flags) { sqe->rw_flags = flags; }

static const unsigned clinux_setup_hybrid_iopoll = 1u << 17; // Linux 6.13

// The ring's flag word: whether the submission thread sleeps, and whether task work or overflowed completions are pending.
static inline int clinux_sq_needs_wakeup(const struct io_uring *ring) {
  return (*(volatile unsigned *)ring->sq.kflags & IORING_SQ_NEED_WAKEUP) != 0;
}
static inline int clinux_sq_has_taskrun(const struct io_uring *ring) {
  return (*(volatile unsigned *)ring->sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

// Takes one completion off the ring, as values. Returns 1 if there was one. io_uring_for_each_cqe is a macro.
static inline int clinux_take_cqe(struct io_uring *ring, uint64_t *data, int32_t *result, uint32_t *flags) {
  unsigned head = *ring->cq.khead;
  if (head == io_uring_smp_load_acquire(ring->cq.ktail)) return 0;
  const struct io_uring_cqe *cqe = &ring->cq.cqes[head & ring->cq.ring_mask];
  *data = cqe->user_data;
  *result = cqe->res;
  *flags = cqe->flags;
  io_uring_smp_store_release(ring->cq.khead, head + 1);
  return 1;
}

// libaio's struct iocb has anonymous unions, too.
static inline void clinux_aio_prepare(struct iocb *cb, int opcode, int fd, const void *buffer, size_t count, int64_t offset,
                                      int rw_flags, uint64_t data) {
  memset(cb, 0, sizeof *cb);
  cb->data = (void *)(uintptr_t)data;
  cb->aio_lio_opcode = (short)opcode;
  cb->aio_fildes = fd;
  cb->aio_rw_flags = rw_flags;
  cb->u.c.buf = (void *)buffer;
  cb->u.c.nbytes = count;
  cb->u.c.offset = offset;
}

// Prepares a poll that completes once, as soon as the descriptor is readable.
static inline void clinux_aio_prepare_poll(struct iocb *cb, int fd, uint64_t data) {
  io_prep_poll(cb, fd, POLLIN);
  cb->data = (void *)(uintptr_t)data;
}

// The completion ring that the kernel maps at a context's address. Taking completions from there costs no system call. libaio
// does the same in io_getevents, but does not declare the structure.
struct clinux_aio_ring {
  uint32_t id, size, head, tail, magic, compatible, incompatible, header_length;
  struct io_event events[];
};

static inline int clinux_aio_ring_is_known(io_context_t context) {
  const struct clinux_aio_ring *ring = (const struct clinux_aio_ring *)context;
  return ring->magic == 0xa10a10a1u && ring->incompatible == 0 && ring->header_length == sizeof *ring;
}

static inline int clinux_aio_has_event(io_context_t context) {
  const struct clinux_aio_ring *ring = (const struct clinux_aio_ring *)context;
  return ring->head != __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
}

// Takes one completion off the ring, as values. Returns 1 if there was one. Only one thread may take completions.
static inline int clinux_aio_take(io_context_t context, uint64_t *data, struct iocb **block, int64_t *result) {
  struct clinux_aio_ring *ring = (struct clinux_aio_ring *)context;
  uint32_t head = ring->head;
  // Pairs with the kernel's barrier between storing an event and the index that publishes it.
  if (head == __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE)) return 0;
  const struct io_event *event = &ring->events[head];
  *data = (uint64_t)(uintptr_t)event->data;
  *block = event->obj;
  *result = (int64_t)event->res;
  // Release: the kernel may reuse the place only after it was read.
  __atomic_store_n(&ring->head, head + 1 == ring->size ? 0 : head + 1, __ATOMIC_RELEASE);
  return 1;
}

// Creates a ring without an index array: entries are taken in order (NO_SQARRAY, Linux 6.6). liburing before 2.5 fills the
// array when it creates a ring, so its two steps are done here. Returns -errno on failure.
static const unsigned clinux_setup_no_sqarray = 1u << 16;
static inline int clinux_make_ring_without_array(unsigned entries, struct io_uring *ring, struct io_uring_params *params) {
  int fd = (int)syscall(SYS_io_uring_setup, entries, params);
  if (fd < 0) return -errno;
  int rc = io_uring_queue_mmap(fd, params, ring);
  if (rc < 0) {
    close(fd);
    return rc;
  }
  ring->features = params->features;
  return 0;
}

// Restricts a ring that is not enabled yet to these operations, with no flags except that of registered files, and to these
// registrations.
static inline int clinux_restrict_ring(
    struct io_uring *ring, const uint8_t *operations, unsigned operation_count, const uint8_t *registrations,
    unsigned registration_count) {
  struct io_uring_restriction rules[64];
  unsigned count = 0;
  memset(rules, 0, sizeof rules);
  for (unsigned i = 0; i < operation_count && count < 62; i++) {
    rules[count].opcode = IORING_RESTRICTION_SQE_OP;
    rules[count++].sqe_op = operations[i];
  }
  for (unsigned i = 0; i < registration_count && count < 63; i++) {
    rules[count].opcode = IORING_RESTRICTION_REGISTER_OP;
    rules[count++].register_op = registrations[i];
  }
  rules[count].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
  rules[count++].sqe_flags = IOSQE_FIXED_FILE;
  // Debian 12's liburing declares this call and the next one, but implements neither.
  long rc = syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, rules, count);
  return rc < 0 ? -errno : 0;
}
static inline int clinux_let_ring_begin(struct io_uring *ring) {
  long rc = syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
  return rc < 0 ? -errno : 0;
}

#include "NBD.h"
#include "RBD.h"
#include "Compression.h"

#endif
