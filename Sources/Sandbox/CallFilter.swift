/// A filter of system calls (seccomp): compiled once, installed by every thread that it is for.
internal import CLinux
internal import Glibc
internal import SystemPackage

struct CallFilter: Sendable {
  /// Instructions of the kernel's machine for filters, 8 bytes each.
  private let program: [UInt64]

  /// - Parameters:
  ///   - calls: what is allowed.
  ///   - refused: fails with EACCES. The C library looks into files of the kernel's now and then, and does without.
  ///   - kills: anything else ends the process; otherwise it is done, and the kernel's log says so.
  /// - Throws: what the library says, ENOMEM for one.
  init(allowing calls: [AllowedCall], refusing refused: [String] = [], kills: Bool) throws(Errno) {
    guard let filter = unsafe seccomp_init(kills ? clinux_act_kill_process : clinux_act_log) else { throw .noMemory }
    defer { unsafe seccomp_release(filter) }
    func check(_ result: Int32) throws(Errno) { if result < 0 { throw Errno(rawValue: -result) } }
    // A tree instead of a list: the last call is not dearer than the first.
    try check(unsafe seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2))
    // Flags of a call in memory cannot be looked at. The C library then takes the one whose flags can.
    let newer = unsafe seccomp_syscall_resolve_name("clone3")
    if newer != clinux_no_such_call { try check(unsafe clinux_answer_with(filter, newer, ENOSYS)) }
    for name in refused where kills {
      let number = unsafe seccomp_syscall_resolve_name(name)
      if number != clinux_no_such_call { try check(unsafe clinux_answer_with(filter, number, EACCES)) }
    }
    for call in calls {
      let number = unsafe seccomp_syscall_resolve_name(call.name)
      // A library that is older than the call: it stays forbidden.
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

  /// The library writes to a descriptor and nowhere else.
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

  /// For the calling thread, and for all that it makes from now on. It cannot be taken away again.
  ///
  /// - Throws: EINVAL or ENOSYS where the kernel has no filters, EACCES where new privileges are not given up.
  func install() throws(Errno) {
    var program = program
    let result = unsafe program.withUnsafeMutableBytes { bytes in
      unsafe clinux_install_filter(bytes.baseAddress, UInt16(bytes.count / 8))
    }
    guard result >= 0 else { throw Errno(rawValue: -result) }
  }
}
