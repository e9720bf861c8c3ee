/// Transfers that were started, before their data is looked up.
internal import VirtioCore

/// The entry of a large table, and what is known about a place in a large file, are rarely in the CPU's caches. So a transfer is
/// not looked up when it is started, but together with those after it: meanwhile its entry is prefetched.
@safe
struct Qcow2Lookups: ~Copyable {
  /// About as many cache lines as a core requests at once.
  static let most = 16

  @safe
  struct Transfer {
    var operation: IOOperation
    var tag: UInt32
    /// What `Qcow2Copies.fetch` returned.
    var entry: UnsafeMutableRawPointer?
    var found = Qcow2Copies.Found()
  }

  private let transfers = UnsafeMutablePointer<Transfer>.allocate(capacity: Self.most)
  private(set) var count = 0

  init() { unsafe transfers.initialize(repeating: Transfer(operation: IOOperation(kind: .read), tag: 0), count: Self.most) }

  deinit { unsafe transfers.deallocate() }

  var isEmpty: Bool {
    @inline(__always) get { count == 0 }
  }

  var isFull: Bool {
    @inline(__always) get { count == Self.most }
  }

  /// - Precondition: it is not full.
  @inline(__always)
  mutating func add(_ operation: IOOperation, tag: UInt32, entry: UnsafeMutableRawPointer?) {
    precondition(!isFull)
    let transfer = unsafe transfers + count
    unsafe operation.store(in: transfer.pointer(to: \.operation).unsafelyUnwrapped)
    unsafe transfer.pointee.tag = tag
    unsafe transfer.pointee.entry = entry
    count &+= 1
  }

  /// Looks for the data of all of them.
  @inline(__always)
  mutating func find(in images: borrowing Qcow2Copies) {
    for index in 0..<count {
      let transfer = unsafe transfers + index
      unsafe transfer.pointee.found = unsafe images.find(
        transfer.pointee.operation.kind, isDurable: transfer.pointee.operation.isDurable, transfer.pointee.operation.offset,
        transfer.pointee.operation.length, entry: transfer.pointee.entry)
    }
  }

  /// One of them in its place: a copy of it would wait for what was just stored. - Parameter index: 0 … `count` − 1.
  subscript(index: Int) -> UnsafeMutablePointer<Transfer> {
    @inline(__always) get { unsafe transfers + index }
  }

  mutating func removeAll() { count = 0 }
}
