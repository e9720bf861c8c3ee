/// Why a qcow2 image cannot be used.
public import SystemPackage
internal import VirtioCore

/// One fault of an image. Each description is a sentence without the image's name, as in "its header says …".
public enum Qcow2Fault: Error, Hashable, Sendable, CustomStringConvertible {
  /// Parts of an image that are located by an offset in it.
  public enum Part: String, Sendable, CaseIterable {
    case header = "header"
    case level1 = "L1 table"
    case level2 = "L2 table"
    case data = "cluster of data"
    case compressed = "compressed cluster"
    case refcountTable = "refcount table"
    case refcountBlock = "refcount block"
    case snapshotTable = "snapshot table"
    case snapshotLevel1 = "L1 table of a snapshot"
    case bitmaps = "directory of bitmaps"
  }

  case cannotRead(Errno)
  case notQcow2
  case tooShort(bytes: UInt64)
  case version(UInt32)
  case clusterBits(UInt32)
  case headerLength(UInt32)
  case unknownFeatures(UInt64, names: [String])
  case encrypted(UInt32)
  case compressionType(UInt8)
  case compressionBit
  case smallClustersForSubclusters(UInt32)
  case refcountOrder(UInt32)
  case backingName
  case extensionTooLong(type: UInt32)
  case extensionTwice(type: UInt32)
  case badExtension(type: UInt32)
  case diskTooLarge(UInt64)
  case level1TooLarge(entries: UInt64)
  case level1TooSmall(entries: UInt64, needed: UInt64)
  case noRefcountTable
  case refcountTableTooLarge(clusters: UInt32)
  case tooManySnapshots(UInt32)
  case misplaced(Part, offset: UInt64)
  case pastEnd(Part, offset: UInt64)
  case overlap(Part, Part)
  case reservedBits(Part, entry: UInt64)
  case sharedTable(offset: UInt64)
  case badSubclusters(entry: UInt64)
  case badSnapshot(index: Int)
  case noSnapshot(String)
  case ambiguousSnapshot(String)
  case badCompression
  case noLibrary(String, package: String)
  // Only for images that are written to.
  case isCorrupt
  case isDirty
  case externalData
  case overlapsMetadata(Part, offset: UInt64)
  case cannotStore(Part, Errno)
  case countsPastEnd
  case tooManyTables
  case isFull
  // Only for images that are changed as a whole.
  case cannotExamine(String)
  case hasErrors(Int)
  case countTooSmall(offset: UInt64)
  case countTooLarge(bits: Int)
  case snapshotName(String)
  case snapshotExists(String)
  case snapshotsWithoutSize
  case backingIsLonger(UInt64)
  case contentsPastEnd
  case emptyDisk
  case noRoomForName

  public var description: String {
    switch self {
    case .cannotRead(let error): "it cannot be read (\(error))"
    case .notQcow2: "it does not start with a qcow2 header; if it is a raw disk, name it with file:"
    case .tooShort(let bytes): "it has \(bytes) bytes, which is shorter than its header"
    case .version(let version): "its format version is \(version), and only 2 and 3 are supported"
    case .clusterBits(let bits): "its cluster size is 2^\(bits) bytes, which is not from 512 bytes to 2 MiB"
    case .headerLength(let length): "its header says that it is \(length) bytes long, which is impossible"
    case .unknownFeatures(let bits, let names):
      "it uses features that are not supported here (\(names.isEmpty ? "bits 0x" + String(bits, radix: 16) : names.map(printable).joined(separator: ", "))): "
        + "convert it with 'qemu-img convert -O qcow2'"
    case .encrypted(let method):
      "it is encrypted (method \(method)), which is not supported here: decrypt it with 'qemu-img convert'"
    case .compressionType(let type): "its compression type (\(type)) is not supported; zlib and zstd are"
    case .compressionBit: "its header contradicts itself about the compression type"
    case .smallClustersForSubclusters(let bits):
      "it has subclusters in clusters of 2^\(bits) bytes, which need clusters of at least 16 KiB"
    case .refcountOrder(let order): "its refcounts have 2^\(order) bits, and the maximum is 64"
    case .backingName:
      "the name of its backing file is not between its header and the end of its first cluster, is empty or has a NUL, or is longer "
        + "than \(Qcow2Limits.name) bytes"
    case .extensionTooLong(let type): "the extension 0x\(String(type, radix: 16)) of its header does not fit into the header"
    case .extensionTwice(let type): "the extension 0x\(String(type, radix: 16)) is in its header more than once"
    case .badExtension(let type): "the extension 0x\(String(type, radix: 16)) of its header has invalid contents"
    case .diskTooLarge(let bytes): "its disk of \(bytes) bytes is larger than is supported with its cluster size"
    case .level1TooLarge(let entries): "its L1 table has \(entries) entries, and the maximum is \(Qcow2Limits.level1Entries)"
    case .level1TooSmall(let entries, let needed): "its L1 table has \(entries) entries, and its disk needs \(needed)"
    case .noRefcountTable: "it has no refcount table"
    case .refcountTableTooLarge(let clusters): "its refcount table has \(clusters) clusters, and the maximum is 8 MiB"
    case .tooManySnapshots(let count): "it has \(count) snapshots, and the maximum is \(Qcow2Limits.snapshots)"
    case .misplaced(let part, let offset): "its \(part.rawValue) is at \(offset), which is not the start of a cluster"
    case .pastEnd(let part, let offset): "its \(part.rawValue) at \(offset) extends beyond the end of the file"
    case .overlap(let one, let other): "its \(one.rawValue) and its \(other.rawValue) overlap"
    case .reservedBits(let part, let entry):
      "the entry 0x\(String(entry, radix: 16)) of its \(part.rawValue) has bits that have to be 0"
    case .sharedTable(let offset): "two entries of its L1 table point at the same L2 table at \(offset)"
    case .badSubclusters(let entry):
      "the entry 0x\(String(entry, radix: 16)) of its L2 table contradicts itself about subclusters"
    case .badSnapshot(let index): "the description of its snapshot number \(index + 1) is truncated or invalid"
    case .noSnapshot(let name): "it has no snapshot '\(printable(name))'"
    case .ambiguousSnapshot(let name):
      "more than one of its snapshots has '\(printable(name))' as its name or number: use the other of the two"
    case .badCompression: "a compressed cluster cannot be decompressed"
    case .noLibrary(let library, let package):
      "its compressed clusters need \(library), which cannot be loaded: install \(package)"
    case .isCorrupt:
      "it is marked as corrupt, and nothing is written to it before it is repaired: use 'qemu-img check -r all'"
    case .isDirty:
      "its refcounts may be wrong, because a program that wrote to it did not end properly: repair it with 'qemu-img check -r all'"
    case .externalData: "it has its data in an external file, which is supported for reading only"
    case .overlapsMetadata(let part, let offset): "its \(part.rawValue) at \(offset) overlaps another table"
    case .cannotStore(let part, let error): "its \(part.rawValue) cannot be written (\(error))"
    case .countsPastEnd: "it has refcounts far beyond the end of the file: convert it with 'qemu-img convert -O qcow2'"
    case .tooManyTables:
      "it has more clusters of metadata than this program can track: convert it with 'qemu-img convert -O qcow2'"
    case .isFull: "its file cannot have more clusters"
    case .cannotExamine(let finding): "it cannot be examined as a whole (\(printable(finding)))"
    case .hasErrors(let count): "it has \(count) errors: repair it with 'qemu-img check -r all'"
    case .countTooSmall(let offset):
      "its refcount of the cluster at \(offset) is too small: repair it with 'qemu-img check -r all'"
    case .countTooLarge(let bits):
      "its refcounts have \(bits) bits, which is too few for another snapshot: convert it with 'qemu-img convert -O qcow2'"
    case .snapshotName(let name): "'\(printable(name))' cannot be the name of a snapshot: use 1 to 255 bytes"
    case .snapshotExists(let name): "it has a snapshot '\(printable(name))' already: delete that one, or use another name"
    case .snapshotsWithoutSize:
      "it has snapshots that do not say how large their disk is, so the size of its disk cannot change: delete them, or convert it"
    case .backingIsLonger(let bytes):
      "its disk would grow over the contents of its backing file, which has \(bytes) bytes: make it larger first with 'qemu-img resize'"
    case .contentsPastEnd:
      "it has clusters beyond the end of its disk, whose contents would appear if it grew: convert it with 'qemu-img convert -O qcow2'"
    case .emptyDisk: "its disk has size 0, so there is nothing to keep"
    case .noRoomForName: "its header has no room for that name of a backing file: use a shorter one"
    }
  }
}

/// Limits that the format does not have: those of QEMU, so that both programs open the same images.
public enum Qcow2Limits {
  /// Entries of an L1 table: 32 MiB.
  public static let level1Entries: UInt64 = (32 << 20) / 8
  /// Bytes.
  public static let refcountTable: UInt64 = 8 << 20
  public static let snapshots: UInt32 = 65536
  /// Bytes of extra data in a snapshot's entry.
  public static let snapshotExtra = 1024
  /// Bytes.
  public static let snapshotTable: UInt64 = 64 << 20
  /// Bytes of a backing file's name.
  public static let name = 1023
  /// Bytes: offsets have 56 bits.
  public static let offset: UInt64 = 1 << 56
  public static let bitmaps: UInt32 = 65535
}
