/// What tests can do on this machine, and the loop devices that some of them need.
import CLinux
import Foundation
import Testing
import VirtioBlkDevice

/// Each is determined once.
enum Host {
  static let isRoot = geteuid() == 0

  /// Runs a program and waits. - Returns: its output, or `nil` if it failed.
  static func run(_ arguments: String...) -> String? {
    guard let child = try? ChildProgram(["/usr/bin/env"] + arguments) else { return nil }
    let (status, output) = child.wait()
    return status == 0 ? output.trimmingCharacters(in: .whitespacesAndNewlines) : nil
  }

  static let hasPython = run("python3", "-c", "import ctypes") != nil

  /// Direct I/O in the temporary folder refuses misaligned buffers.
  static let refusesOddBuffers: Bool = {
    guard let scratch = try? Scratch(), let path = try? scratch.image(),
      let image = try? ImageFile(ImageOptions(path: path))
    else { return false }
    return image.isDirect && image.memoryAlignment > 1
  }()

  /// Loop devices can be created here.
  static let hasLoop: Bool = {
    guard isRoot, let device = run("losetup", "--find") else { return false }
    return device.hasPrefix("/dev/loop")
  }()

  /// A thread can have a mount namespace of its own.
  static let canMount: Bool = isRoot && run("unshare", "-m", "mount", "-t", "ramfs", "none", "/mnt") != nil
}

extension Host {
  /// File systems on disks can be created and mounted here.
  static let canMountDisks: Bool = canMount && run("mkfs.ext4", "-V") != nil

  /// zram devices can be created here.
  static let hasZram: Bool = unsafe isRoot && access("/sys/class/zram-control/hot_add", R_OK) == 0
}

/// A zram device, removed when the test is over.
final class ZramDevice {
  let path: String
  private let number: String

  init(size: Int) throws {
    // Reading creates a device and returns its number.
    let text = try String(contentsOfFile: "/sys/class/zram-control/hot_add", encoding: .utf8)
    number = text.trimmingCharacters(in: .whitespacesAndNewlines)
    path = "/dev/zram" + number
    try "\(size)".write(toFile: "/sys/block/zram\(number)/disksize", atomically: false, encoding: .utf8)
    try waitUntil("\(path) is there") { unsafe access(path, R_OK | W_OK) == 0 }
  }

  deinit {
    // The previous user may still have it open for a moment.
    for _ in 0..<1000 {
      if (try? "1".write(toFile: "/sys/block/zram\(number)/reset", atomically: false, encoding: .utf8)) != nil,
        (try? number.write(toFile: "/sys/class/zram-control/hot_remove", atomically: false, encoding: .utf8)) != nil
      {
        return
      }
      usleep(10_000)
    }
  }
}

/// A loop device, removed when the test is over.
final class LoopDevice {
  let path: String
  let file: String
  private let scratch: Scratch

  /// - Parameter options: for losetup.
  init(size: Int, _ options: String...) throws {
    scratch = try Scratch()
    file = try scratch.image("backing", size: size)
    let child = try ChildProgram(["/usr/bin/env", "losetup", "--find", "--show"] + options + [file])
    let (status, output) = child.wait()
    try #require(status == 0, "\(output)")
    path = output.trimmingCharacters(in: .whitespacesAndNewlines)
  }

  deinit { _ = Host.run("losetup", "-d", path) }
}
