/// One naturally aligned word of memory that a peer may read or change at any moment, with a name for every kind of access
/// that a ring needs. All control words of a ring go through here and nowhere else: a plain load may be repeated, cached or
/// removed by the compiler; an atomic one may not.
public import Synchronization

/// The widths that a shared word can have.
public protocol SharedWord: FixedWidthInteger, Sendable {}
extension UInt8: SharedWord {}
extension UInt16: SharedWord {}
extension UInt32: SharedWord {}
extension UInt64: SharedWord {}

/// A view of one shared word. It owns nothing: the mapping's owner keeps it alive for as long as the cell is used.
@safe
public struct SharedCell<Value: SharedWord>: @unchecked Sendable {
  @usableFromInline let pointer: UnsafeMutableRawPointer

  /// - Parameter pointer: the word; aligned to its size, valid for as long as the cell is used.
  @inlinable public init(_ pointer: UnsafeMutableRawPointer) { unsafe self.pointer = pointer }
}

extension SharedCell where Value == UInt8 {
  @inlinable var word: UnsafeMutablePointer<Atomic<UInt8>> { unsafe pointer.assumingMemoryBound(to: Atomic<UInt8>.self) }
  /// Reads the word once, whole. Orders nothing.
  @inlinable public func loadRelaxed() -> UInt8 { unsafe word.pointee.load(ordering: .relaxed) }
  /// Writes the word once, whole. Orders nothing.
  @inlinable public func storeRelaxed(_ value: UInt8) { unsafe word.pointee.store(value, ordering: .relaxed) }
  /// Writes the word once, whole, and after everything that comes earlier in the program.
  @inlinable public func storeRelease(_ value: UInt8) { unsafe word.pointee.store(value, ordering: .releasing) }
}

extension SharedCell where Value == UInt16 {
  @inlinable var word: UnsafeMutablePointer<Atomic<UInt16>> { unsafe pointer.assumingMemoryBound(to: Atomic<UInt16>.self) }
  /// Reads the word once, whole. Orders nothing.
  @inlinable public func loadRelaxed() -> UInt16 { unsafe word.pointee.load(ordering: .relaxed) }
  /// Reads the word once, whole, and before everything that comes later in the program.
  @inlinable public func loadAcquire() -> UInt16 { unsafe word.pointee.load(ordering: .acquiring) }
  /// Writes the word once, whole. Orders nothing.
  @inlinable public func storeRelaxed(_ value: UInt16) { unsafe word.pointee.store(value, ordering: .relaxed) }
  /// Writes the word once, whole, and after everything that comes earlier in the program.
  @inlinable public func storeRelease(_ value: UInt16) { unsafe word.pointee.store(value, ordering: .releasing) }
}

extension SharedCell where Value == UInt32 {
  @inlinable var word: UnsafeMutablePointer<Atomic<UInt32>> { unsafe pointer.assumingMemoryBound(to: Atomic<UInt32>.self) }
  /// Reads the word once, whole. Orders nothing.
  @inlinable public func loadRelaxed() -> UInt32 { unsafe word.pointee.load(ordering: .relaxed) }
  /// Reads the word once, whole, and before everything that comes later in the program.
  @inlinable public func loadAcquire() -> UInt32 { unsafe word.pointee.load(ordering: .acquiring) }
  /// Writes the word once, whole. Orders nothing.
  @inlinable public func storeRelaxed(_ value: UInt32) { unsafe word.pointee.store(value, ordering: .relaxed) }
  /// Writes the word once, whole, and after everything that comes earlier in the program.
  @inlinable public func storeRelease(_ value: UInt32) { unsafe word.pointee.store(value, ordering: .releasing) }
  /// Adds with wrap-around and returns the new value; a full ordering point.
  @inlinable public func increment() -> UInt32 {
    unsafe word.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
  }
  /// Sets bits; a full ordering point.
  @inlinable public func formUnion(_ bits: UInt32) {
    _ = unsafe word.pointee.bitwiseOr(bits, ordering: .sequentiallyConsistent)
  }
  /// Clears bits; a full ordering point.
  @inlinable public func subtract(_ bits: UInt32) {
    _ = unsafe word.pointee.bitwiseAnd(~bits, ordering: .sequentiallyConsistent)
  }
  /// The address as the kernel's futex calls want it.
  @inlinable public var address: UnsafeMutablePointer<UInt32> { unsafe pointer.assumingMemoryBound(to: UInt32.self) }
}

extension SharedCell where Value == UInt64 {
  @inlinable var word: UnsafeMutablePointer<Atomic<UInt64>> { unsafe pointer.assumingMemoryBound(to: Atomic<UInt64>.self) }
  /// Reads the word once, whole. Orders nothing.
  @inlinable public func loadRelaxed() -> UInt64 { unsafe word.pointee.load(ordering: .relaxed) }
  /// Reads the word once, whole, and before everything that comes later in the program.
  @inlinable public func loadAcquire() -> UInt64 { unsafe word.pointee.load(ordering: .acquiring) }
  /// Writes the word once, whole. Orders nothing.
  @inlinable public func storeRelaxed(_ value: UInt64) { unsafe word.pointee.store(value, ordering: .relaxed) }
  /// Writes the word once, whole, and after everything that comes earlier in the program.
  @inlinable public func storeRelease(_ value: UInt64) { unsafe word.pointee.store(value, ordering: .releasing) }
  /// Loads after every load that comes before it in the program, those of a copy included: what was read is then no older
  /// than the value. On x86-64 a plain load.
  @inlinable public func loadAfterLoads() -> UInt64 {
    atomicMemoryFence(ordering: .acquiring)
    return loadRelaxed()
  }
  /// Adds with wrap-around and returns the new value; a full ordering point.
  @inlinable public func increment() -> UInt64 {
    unsafe word.pointee.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
  }
}

/// Orders every earlier store before every later load: the one ordering that release and acquire do not give, needed
/// wherever a side publishes an index and then looks whether the other side went to sleep.
@inlinable public func fullFence() { atomicMemoryFence(ordering: .sequentiallyConsistent) }
