/// A filter of system calls (seccomp): compiled once, and installed by each thread that it is for.
internal import CLinux
internal import Glibc
internal import SystemPackage

struct CallFilter: Sendable {
  /// BPF instructions, 8 bytes each.
  private let program: [UInt64]

  /// - Parameters:
  ///   - calls: the allowed calls.
  ///   - refused: calls that fail with EACCES. The C library now and then reads files of the kernel, and copes without them.
  ///   - kills: any other call ends the process; if false, it is executed and logged by the kernel.
  /// - Throws: an error of the library, such as ENOMEM.
  init(allowing calls: [AllowedCall], refusing refused: [String] = [], kills: Bool) throws(Errno) {
    guard let filter = unsafe seccomp_init(kills ? clinux_act_kill_process : clinux_act_log) else { throw .noMemory }
    defer { unsafe seccomp_release(filter) }
    func check(_ result: Int32) throws(Errno) { if result < 0 { throw Errno(rawValue: -result) } }
    // A binary tree instead of a list, so that all calls cost about the same.
    try check(unsafe seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2))
    // The flags of clone3 are in memory, where a filter cannot see them. With ENOSYS the C library falls back to clone, whose
    // flags it can check.
    let newer = unsafe seccomp_syscall_resolve_name("clone3")
    if newer != clinux_no_such_call { try check(unsafe clinux_answer_with(filter, newer, ENOSYS)) }
    for name in refused where kills {
      let number = unsafe seccomp_syscall_resolve_name(name)
      if number != clinux_no_such_call { try check(unsafe clinux_answer_with(filter, number, EACCES)) }
    }
    for call in calls {
      let number = unsafe seccomp_syscall_resolve_name(call.name)
      // If the library is older than the call, the call stays forbidden.
      guard number != clinux_no_such_call else { continue }
      guard let condition = call.condition else {
        try check(unsafe seccomp_rule_add_array(filter, clinux_act_allow, number, 0, nil))
        continue
      }
      for value in condition.values {
        try check(unsafe clinux_allow_if(filter, number, condition.argument, condition.mask, value))
      }
    }
    program = unsafe try Self.compiled(filter)
  }

  /// The compiled filter, by way of a memfd: the library can only write it to a descriptor.
  private static func compiled(_ filter: UnsafeMutableRawPointer) throws(Errno) -> [UInt64] {
    let file = unsafe memfd_create("filter", UInt32(MFD_CLOEXEC))
    guard file >= 0 else { throw Errno(rawValue: errno) }
    defer { close(file) }
    let result = unsafe seccomp_export_bpf(filter, file)
    guard result >= 0 else { throw Errno(rawValue: -result) }
    var program = [UInt64](repeating: 0, count: Int(lseek(file, 0, SEEK_END)) / 8)
    let count = unsafe program.withUnsafeMutableBytes { unsafe pread(file, $0.baseAddress, $0.count, 0) }
    guard count == program.count * 8, count > 0, program.count <= 4096 else { throw .ioError }
    return program
  }

  /// Installs the filter for the calling thread, and for all threads that it creates from now on. It cannot be removed.
  ///
  /// - Throws: EINVAL or ENOSYS if the kernel has no filters, EACCES if new privileges were not given up.
  func install() throws(Errno) {
    var program = program
    let result = unsafe program.withUnsafeMutableBytes { bytes in
      unsafe clinux_install_filter(bytes.baseAddress, UInt16(bytes.count / 8))
    }
    guard result >= 0 else { throw Errno(rawValue: -result) }
  }
}
