/// What the system reports about the medium under an image.
internal import CLinux
internal import Glibc

/// The kind of file system under an image, as far as it matters to a disk.
struct MediumSystem {
  private static let tmpfs: UInt32 = 0x0102_1994
  private static let ramfs: UInt32 = 0x8584_58f6
  private static let hugetlbfs: UInt32 = 0x9584_58f6
  /// ext2 to ext4, XFS, btrfs, F2FS.
  private static let local: [UInt32] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010]

  /// Its number in `statfs`; `nil` if it is not reported.
  private let magic: UInt32?

  init(_ descriptor: Int32) {
    var system = statfs()
    magic = unsafe fstatfs(descriptor, &system) == 0 ? UInt32(truncatingIfNeeded: system.f_type) : nil
  }

  /// A file of pages, where touching a hole through a mapping allocates a page, even for a read.
  var isOfPages: Bool { magic == Self.tmpfs || magic == Self.ramfs }
  var isInMemory: Bool { isOfPages || magic == Self.hugetlbfs }
  /// On NFS, CIFS, FUSE and the like, other machines can change a file; a read checks whether they did, but a mapping does not.
  var isLocal: Bool { magic.map(Self.local.contains) ?? false }

  /// Whether discarding in a file deallocates space: tried just past its end, without touching any data.
  func canPunch(_ descriptor: Int32, size: UInt64) -> Bool {
    let mode = Int32(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    let past = off_t(clamping: size)
    if past <= off_t.max - 4096, fallocate(descriptor, mode, past, 4096) == 0 { return true }
    // At the largest size that a file can have, nothing is past the end, and the kernel returns that error before it asks the
    // file system.
    let isLargest = past > off_t.max - 4096 || errno == EFBIG
    return isLargest && (isLocal || magic == Self.tmpfs)
  }
}

/// A block device in /sys, by its number.
struct SystemDevice: Equatable {
  /// Its number, as in "259:1".
  let name: String

  init(name: String) { self.name = name }
  init(_ number: dev_t) { name = "\(gnu_dev_major(number)):\(gnu_dev_minor(number))" }

  var folder: String { "/sys/dev/block/\(name)" }

  /// The kernel's name for it, as in "vda1"; `nil` without /sys.
  var kernelName: String? { SystemText.link(folder)?.split(separator: "/").last.map(String.init) }

  /// It is memory: an I/O call never blocks.
  var isMemory: Bool {
    let name = kernelName ?? ""
    return name.hasPrefix("zram") || name.hasPrefix("ram") || name.hasPrefix("pmem")
  }

  /// A number that the kernel reports about the device's queue; 0: none. A partition's queue is that of its disk.
  func queueNumber(_ name: String) -> UInt64 {
    for place in ["queue", "../queue"] {
      if let text = SystemText.line("\(folder)/\(place)/\(name)"), let number = UInt64(text) { return number }
    }
    return 0
  }

  /// Bytes before its first physical block; a partition has its own.
  var alignmentOffset: UInt64 { SystemText.line(folder + "/alignment_offset").flatMap(UInt64.init) ?? 0 }

  /// A name that is the same after a restart and differs from every other device's; `nil`: it has none.
  var lastingName: String? {
    // A partition is named by its disk and its number.
    let partition = SystemText.line(folder + "/partition")
    for place in [folder, folder + "/.."] {
      for name in ["dm/uuid", "wwid", "device/wwid", "md/uuid", "serial", "device/serial"] {
        guard let text = SystemText.line("\(place)/\(name)"), !text.isEmpty else { continue }
        return text + (partition.map { "-\($0)" } ?? "")
      }
      if partition == nil { break }
    }
    return nil
  }
}

/// Small virtual files of the kernel.
enum SystemText {
  /// The target of a symbolic link; `nil` if it is not a link.
  static func link(_ path: String) -> String? {
    unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 1) { buffer in
      let count = unsafe readlink(path, buffer.baseAddress!, buffer.count)
      return count > 0 ? unsafe String(decoding: buffer.prefix(count), as: UTF8.self) : nil
    }
  }

  /// The first line of a file, without spaces around it; `nil` if it cannot be read.
  static func line(_ path: String) -> String? {
    guard let text = contents(path, most: 4096) else { return nil }
    let line = text.prefix { $0 != "\n" }
    return String(line.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
  }

  /// The contents of a file, up to about `most` bytes; `nil` if it cannot be opened.
  static func contents(_ path: String, most: Int) -> String? {
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    while bytes.count < most {
      let part = unsafe [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
        count = unsafe max(read(descriptor, buffer.baseAddress!, 4096), 0)
      }
      guard !part.isEmpty else { break }
      bytes += part
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// The names in a folder, sorted; none if it cannot be read.
  static func names(in folder: String) -> [String] {
    guard let stream = unsafe opendir(folder) else { return [] }
    defer { unsafe closedir(stream) }
    var names: [String] = []
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { place in
        unsafe place.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
  }
}
