/// Images of other formats are refused when they are opened, and nothing that a guest writes makes another file be opened.
import CLinux
import Foundation
import GuestDriver
import Testing
import VirtioBlkDevice

@Suite struct ForeignFormatTests {
  struct Sample: Sendable, CustomTestStringConvertible {
    var format: String
    /// Counted from the end if negative.
    var offset: Int
    var bytes: [UInt8]
    var testDescription: String { "\(format) by \(bytes) at \(offset)" }

    init(_ format: String, _ offset: Int, _ bytes: [UInt8]) { (self.format, self.offset, self.bytes) = (format, offset, bytes) }
    init(_ format: String, _ offset: Int, _ text: String) { self.init(format, offset, Array(text.utf8)) }
  }

  static let samples = [
    Sample("a qcow2 image", 0, [0x51, 0x46, 0x49, 0xfb]), Sample("a QED image", 0, "QED\0"), Sample("a VMDK image", 0, "KDMV"),
    Sample("a VMDK image", 0, "COWD"), Sample("a VMDK description", 0, "# Disk DescriptorFile\nversion=1"),
    Sample("a VDI image", 0x40, [0x7f, 0x10, 0xda, 0xbe]), Sample("a VHDX image", 0, "vhdxfile"),
    Sample("a VHD image", 0, "conectix"), Sample("a VHD image", -512, "conectix"),
    Sample("a Parallels image", 0, "WithoutFreeSpace"), Sample("a Parallels image", 0, "WithouFreSpacExt"),
    Sample("a Bochs image", 0, "Bochs Virtual HD Image"), Sample("a LUKS volume", 0, [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]),
    Sample("a DMG image", -512, "koly"),
  ]

  private static func image(_ sample: Sample, _ scratch: Scratch) throws -> String {
    let path = try scratch.image(size: 1 << 20)
    let handle = try #require(FileHandle(forWritingAtPath: path))
    try handle.seek(toOffset: UInt64(sample.offset < 0 ? (1 << 20) + sample.offset : sample.offset))
    try handle.write(contentsOf: Data(sample.bytes))
    return path
  }

  @Test(arguments: samples) func anotherFormatIsNoRawDisk(sample: Sample) throws {
    let scratch = try Scratch()
    let path = try Self.image(sample, scratch)
    for isReadOnly in [false, true] {
      #expect(throws: ImageError.foreign(path: path, format: sample.format)) {
        _ = try ImageFile(ImageOptions(path: path, isReadOnly: isReadOnly))
      }
    }
    // A user who knows better can say so, and the bytes are the disk's.
    let image = try ImageFile(ImageOptions(path: path, format: .raw))
    #expect(image.size == 1 << 20)
  }

  /// Files of any length, as qemu-img makes them: the error does not suggest to lengthen them, which applies to raw disks only.
  @Test(arguments: samples) func anotherFormatOfAnyLengthIsCalledWhatItIs(sample: Sample) throws {
    let scratch = try Scratch()
    let path = try Self.image(sample, scratch)
    let file = try #require(FileHandle(forUpdatingAtPath: path))
    let end = try file.seekToEnd()
    // A signature at the end stays at the end.
    try file.seek(toOffset: end - 512)
    let tail = try file.readToEnd() ?? Data()
    try file.seek(toOffset: end - 512 + 16)
    try file.write(contentsOf: tail)
    try file.close()
    #expect(throws: ImageError.foreign(path: path, format: sample.format)) { _ = try ImageFile(ImageOptions(path: path)) }
    #expect(throws: ImageError.oddSize(path: path, size: end + 16, blockSize: 512)) {
      _ = try ImageFile(ImageOptions(path: path, format: .raw))
    }
  }

  @Test func aRawDiskIsNone() throws {
    let scratch = try Scratch()
    for (offset, text) in [(1, "QFI\u{fb}"), (512, "conectix"), (0, "QF"), (0x41, "\u{7f}"), (510, "U\u{aa}")] {
      let path = try Self.image(Sample("none", offset, text), scratch)
      #expect(try ImageFile(ImageOptions(path: path)).size == 1 << 20)
    }
    // Smaller than the part that is examined.
    let path = try scratch.image("small", size: 512)
    #expect(try ImageFile(ImageOptions(path: path)).size == 512)
  }

  /// A guest writes such a header on a running disk: it is data, now and later with `--format raw`.
  @Test func aGuestMayWriteWhatItLikes() throws {
    let rig = try Rig()
    let header: [UInt8] = [0x51, 0x46, 0x49, 0xfb] + zeroes(508)
    try rig.expect(.write(sector: 0, header))
    #expect(try rig.expect(.read(sector: 0, bytes: 512)).answer == header)
    #expect(rig.client.capacity == 4 << 20)
  }
}
