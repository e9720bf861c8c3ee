/// Images of formats that this program does not serve, recognized by their first or last bytes.
internal import CLinux
internal import Glibc

/// Such a file is refused when it is opened, because a guest on its raw bytes would see garbage and overwrite it. It is never
/// opened in the format that it claims to be: a guest controls the bytes of its disk, and a forged header must not let it read
/// a file of the host. At worst, what a guest writes gets its own disk refused.
enum ForeignFormat {
  /// Bytes that are checked at either end.
  private static let window = 512

  private static let heads: [(name: String, offset: Int, bytes: [UInt8])] = [
    ("a qcow2 image", 0, Array("QFI\u{fb}".unicodeScalars.map { UInt8($0.value) })),
    ("a QED image", 0, Array("QED\0".utf8)),
    ("a VMDK image", 0, Array("KDMV".utf8)),
    ("a VMDK image", 0, Array("COWD".utf8)),
    ("a VMDK description", 0, Array("# Disk DescriptorFile".utf8)),
    ("a VDI image", 0x40, [0x7f, 0x10, 0xda, 0xbe]),
    ("a VHDX image", 0, Array("vhdxfile".utf8)),
    ("a VHD image", 0, Array("conectix".utf8)),
    ("a Parallels image", 0, Array("WithoutFreeSpace".utf8)),
    ("a Parallels image", 0, Array("WithouFreSpacExt".utf8)),
    ("a Bochs image", 0, Array("Bochs Virtual HD Image".utf8)),
    ("a LUKS volume", 0, Array("LUKS".utf8) + [0xba, 0xbe]),
  ]

  /// Signatures at the end, in the last 512 bytes.
  private static let tails: [(name: String, bytes: [UInt8])] = [
    ("a VHD image", Array("conectix".utf8)), ("a DMG image", Array("koly".utf8)),
  ]

  /// - Parameters:
  ///   - descriptor: not opened for direct I/O.
  ///   - size: of the image, bytes.
  /// - Returns: what it looks like, as in "a qcow2 image"; `nil` for a raw disk, and for what cannot be read.
  static func of(_ descriptor: Int32, size: UInt64) -> String? {
    let head = read(descriptor, at: 0)
    if let found = heads.first(where: { head.dropFirst($0.offset).starts(with: $0.bytes) }) { return found.name }
    guard size >= 2 * UInt64(window) else { return nil }
    let tail = read(descriptor, at: off_t(size) - off_t(window))
    return tails.first { tail.starts(with: $0.bytes) }?.name
  }

  private static func read(_ descriptor: Int32, at offset: off_t) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: window) { buffer, count in
      count = unsafe max(pread(descriptor, buffer.baseAddress!, window, offset), 0)
    }
  }
}
