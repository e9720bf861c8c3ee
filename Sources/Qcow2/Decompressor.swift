/// The system's zlib and zstd. Like libnbd, they are loaded when an image needs them: a program that serves raw disks does not
/// load them, and the build does not need their headers.
internal import CLinux
internal import Glibc

@safe
public final class Qcow2Decompressor: @unchecked Sendable {
  /// The functions of the library; written once.
  private let zlib: UnsafeMutablePointer<clinux_zlib>?
  private let zstd: UnsafeMutablePointer<clinux_zstd>?

  private init(_ compression: Qcow2Compression) throws(Qcow2Fault) {
    switch compression {
    case .zlib:
      let table = UnsafeMutablePointer<clinux_zlib>.allocate(capacity: 1)
      unsafe table.initialize(to: clinux_zlib())
      guard unsafe clinux_zlib_load(table) == 0 else { throw .noLibrary("libz.so.1", package: "zlib1g") }
      unsafe (zlib, zstd) = (table, nil)
    case .zstd:
      let table = UnsafeMutablePointer<clinux_zstd>.allocate(capacity: 1)
      unsafe table.initialize(to: clinux_zstd())
      guard unsafe clinux_zstd_load(table) == 0 else { throw .noLibrary("libzstd.so.1", package: "libzstd1") }
      unsafe (zlib, zstd) = (nil, table)
    }
  }

  private static let loadedZlib = Result<Qcow2Decompressor, Qcow2Fault> { () throws(Qcow2Fault) in try Qcow2Decompressor(.zlib)
  }
  private static let loadedZstd = Result<Qcow2Decompressor, Qcow2Fault> { () throws(Qcow2Fault) in try Qcow2Decompressor(.zstd)
  }

  /// - Throws: `noLibrary`.
  public static func find(_ compression: Qcow2Compression) throws(Qcow2Fault) -> Qcow2Decompressor {
    try (compression == .zlib ? loadedZlib : loadedZstd).get()
  }

  /// Loads both, for a process that is about to give up the right to load libraries.
  public static func load() {
    for compression in Qcow2Compression.allCases { _ = try? find(compression) }
  }

  /// Decompresses into the target. Whatever the source contains, only these two and the library's own memory are accessed.
  ///
  /// - Parameters:
  ///   - target: a cluster.
  /// - Returns: whether the target was filled.
  public func decompress(_ source: [UInt8], into target: UnsafeMutableRawBufferPointer) -> Bool {
    unsafe source.withUnsafeBytes { source in
      guard let from = source.baseAddress, let to = target.baseAddress else { return false }
      if let zlib = unsafe zlib { return unsafe clinux_inflate(zlib, from, source.count, to, target.count) != 0 }
      guard let zstd = unsafe zstd else { return false }
      return unsafe clinux_unzstd(zstd, from, source.count, to, target.count) != 0
    }
  }
}
