/// The dirty log: the pages of guest memory that a device has written to, one bit for each, in memory that a front-end reads
/// and clears while it migrates the guest (vhost-user "Migration").
internal import CLinux
internal import Glibc
internal import Synchronization
public import SystemPackage

/// Why a file cannot be used as a dirty log.
public enum DirtyLogError: Error, Hashable, Sendable, CustomStringConvertible {
  /// It has no bytes.
  case empty
  /// It would end beyond the largest offset that a file can have; bytes.
  case rangeOverflows(offset: UInt64, size: UInt64)
  /// The file ends before the log does; bytes.
  case fileTooSmall(fileSize: Int64, needed: UInt64)
  /// The system refused the mapping.
  case notMappable(Errno)

  /// One sentence for a person: what happened, and with what.
  public var description: String {
    switch self {
    case .empty: "the dirty log has no bytes"
    case .rangeOverflows(let offset, let size):
      "the dirty log of \(size) bytes at byte \(offset) of its file ends beyond the largest offset that a file can have"
    case .fileTooSmall(let fileSize, let needed):
      "the file of the dirty log has \(fileSize) bytes, and the log ends at byte \(needed)"
    case .notMappable(let error): "the dirty log cannot be mapped: \(error)"
    }
  }
}

/// The pages that a device has written to, one bit for each.
///
/// Bit `page % 8` of byte `page / 8` says that the guest's page `page` was written to. Pages beyond the end of the log are not
/// logged.
@safe
public final class DirtyLog: @unchecked Sendable {
  /// Bytes of guest memory that one bit covers, whatever the guest's page size is.
  public static let pageSize: UInt64 = 4096

  /// Bytes of the log.
  public let size: UInt64
  /// Where in its file it begins, bytes.
  public let offset: UInt64
  /// The file, for a process that continues with it.
  public let descriptor: OwnedDescriptor
  private let mapping: Mapping
  private let base: UnsafeMutableRawPointer

  /// Maps the log in a front-end's file. This asks the file system, which may never answer: not for a control thread.
  ///
  /// - Parameters:
  ///   - descriptor: open for reading and writing; the log keeps it open for as long as it exists.
  ///   - offset: where the log begins, bytes.
  ///   - size: its length, bytes.
  public init(descriptor: OwnedDescriptor, offset: UInt64, size: UInt64) throws(DirtyLogError) {
    guard size > 0 else { throw .empty }
    // Half of the signed range, so that rounding to a page cannot overflow either.
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard !overflow, end <= UInt64(Int64.max / 2) else { throw .rangeOverflows(offset: offset, size: size) }
    var information = stat()
    guard unsafe fstat(descriptor.rawValue, &information) == 0 else { throw .notMappable(Errno(rawValue: errno)) }
    guard information.st_mode & S_IFMT == S_IFREG else { throw .notMappable(.invalidArgument) }
    guard UInt64(max(information.st_size, 0)) >= end else {
      throw .fileTooSmall(fileSize: Int64(information.st_size), needed: end)
    }
    let page = UInt64(PageSize.bytes)
    let start = offset / page * page
    do throws(Errno) {
      mapping = try Mapping(
        descriptor: descriptor.rawValue, offset: Int64(start), count: Int(end - start), unmappedBy: descriptor.disposer)
    } catch { throw .notMappable(error) }
    self.size = size
    self.offset = offset
    self.descriptor = descriptor
    unsafe base = mapping.base + Int(offset - start)
  }

  /// Some page of it is gone: the front-end truncated the file.
  public var hasFaulted: Bool { mapping.faults > 0 }

  /// Marks the pages of a range that was written to.
  ///
  /// - Parameters:
  ///   - address: a guest address.
  ///   - count: bytes; at most a request's.
  public func mark(_ address: UInt64, count: Int) { bits.mark(address, count: count) }

  /// The bits themselves, for a queue, which counts no references on the path of a request.
  public var bits: DirtyBits { unsafe DirtyBits(base: base, size: size) }
}

/// The bits of a log. They do not keep the log mapped: its owner does.
@safe
public struct DirtyBits {
  fileprivate let base: UnsafeMutableRawPointer
  fileprivate let size: UInt64

  /// As `DirtyLog.mark`.
  public func mark(_ address: UInt64, count: Int) {
    guard count > 0 else { return }
    let (last, overflow) = address.addingReportingOverflow(UInt64(count - 1))
    guard !overflow else { return }
    let end = last / DirtyLog.pageSize
    var page = address / DirtyLog.pageSize
    while page <= end, page / 8 < size {
      // Release: whoever sees the bit sees what was written. The front-end clears bits at the same time, so this is one atomic
      // operation, done even if the bit seems to be set already: it may be about to be cleared.
      unsafe (base + Int(page / 8)).assumingMemoryBound(to: Atomic<UInt8>.self).pointee
        .bitwiseOr(1 << UInt8(page % 8), ordering: .releasing)
      page += 1
    }
  }
}

/// Which of a queue's writes are logged, and where.
public struct QueueLog: Sendable {
  /// The log, which all queues of a device share.
  public var log: DirtyLog
  /// Data and status bytes, by their guest addresses (VHOST_F_LOG_ALL).
  public var coversBuffers: Bool
  /// The guest address under which writes to the used ring are logged, which the front-end chooses freely; `nil`: they are not
  /// logged.
  public var usedRing: UInt64?

  /// The parameters are the properties of the same names.
  public init(log: DirtyLog, coversBuffers: Bool, usedRing: UInt64?) {
    self.log = log
    self.coversBuffers = coversBuffers
    self.usedRing = usedRing
  }
}
