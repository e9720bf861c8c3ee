/// Finds out what keeps a block device from being opened, for the user who has to free it.
internal import CLinux
internal import Glibc
internal import VirtioCore

enum BlockDeviceHolder {
  /// - Returns: as in "it is mounted on /mnt"; `nil` if a program has it open: the kernel does not tell which.
  static func describe(_ device: SystemDevice) -> String? {
    let disk = device.kernelName ?? ""
    // Whoever uses a partition uses a part of its disk, and the other way round.
    var devices: [(subject: String, device: SystemDevice)] = [("it", device)]
    for name in SystemText.names(in: device.folder) where !disk.isEmpty && name.hasPrefix(disk) {
      guard let number = SystemText.line("\(device.folder)/\(name)/dev") else { continue }
      devices.append(("its partition \(name)", SystemDevice(name: number)))
    }
    let mounts = Mount.all()
    let swaps = (SystemText.contents("/proc/swaps", most: 1 << 20) ?? "").split(separator: "\n").dropFirst()
    for (subject, device) in devices {
      if let mount = mounts.first(where: { $0.isOf(device) }) { return "\(subject) is mounted on \(printable(mount.place))" }
      if swaps.contains(where: { self.device(at: Mount.unescaped($0.prefix { $0 != " " && $0 != "\t" })) == device }) {
        return "\(subject) is swap space"
      }
      if let holder = SystemText.names(in: device.folder + "/holders").first {
        let name = SystemText.line("\(device.folder)/holders/\(holder)/dm/name")
        return "\(subject) is a part of \(holder)" + (name.map { " (\(printable($0)))" } ?? "")
      }
    }
    return nil
  }

  /// One line of /proc/thread-self/mountinfo.
  private struct Mount {
    var device: String
    var place: String
    var source: String

    static func all() -> [Mount] {
      let text = SystemText.contents("/proc/thread-self/mountinfo", most: 4 << 20) ?? ""
      return text.split(separator: "\n").compactMap { line in
        let words = line.split(separator: " ")
        guard words.count > 6, let dash = words.firstIndex(of: "-"), dash + 2 < words.count else { return nil }
        return Mount(device: String(words[2]), place: unescaped(words[4]), source: unescaped(words[dash + 2]))
      }
    }

    /// btrfs reports a device number of its own; only the source names the real device.
    func isOf(_ wanted: SystemDevice) -> Bool {
      device == wanted.name || source.hasPrefix("/dev/") && BlockDeviceHolder.device(at: source) == wanted
    }

    /// Spaces and similar characters are escaped in octal, as in `\040`.
    static func unescaped(_ word: Substring) -> String {
      var bytes: [UInt8] = []
      var rest = Array(word.utf8)[...]
      while let first = rest.first {
        let digits = rest.dropFirst().prefix(3)
        if first == UInt8(ascii: "\\"), digits.count == 3,
          let byte = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
        {
          bytes.append(byte)
          rest = rest.dropFirst(4)
        } else {
          bytes.append(first)
          rest = rest.dropFirst()
        }
      }
      return String(decoding: bytes, as: UTF8.self)
    }
  }

  /// The block device at a path; `nil` when there is none.
  private static func device(at path: String) -> SystemDevice? {
    var info = stat()
    guard unsafe stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFBLK else { return nil }
    return SystemDevice(info.st_rdev)
  }
}
