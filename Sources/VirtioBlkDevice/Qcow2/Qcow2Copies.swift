/// Copies from and to the mappings of a disk of qcow2 images.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// What is known about where the data of a transfer is.
@safe
enum Qcow2Place {
  /// It is not looked up yet. `entry`: that of the topmost image; `nil`: in no table that has been read.
  case unknown(entry: UnsafeMutableRawPointer?)
  /// All of it is in one piece of an image's data file, which is mapped.
  case mapped(UnsafeMutableRawPointer, image: Int16)
  /// The same, but not mapped: bytes from the beginning of the file.
  case inFile(UInt64, image: Int16)
  /// Anything else.
  case elsewhere
  /// The transfer is done, without a copy: bytes, or a negative errno.
  case done(Int32)
}

/// One worker's view of the images of a disk: to find data and to copy it changes no reference count.
@safe
struct Qcow2Copies: CopyMedium, ~Copyable {
  /// What is needed of an image.
  private struct Image {
    let map: Qcow2Map
    /// `nil`: its data is not mapped.
    let mapping: Qcow2Mapping.View?
    /// Of its data file, which is open for as long as the disk exists.
    let descriptor: Int32
  }

  typealias Place = Qcow2Place
  typealias Transfer = CopyQueue<Self>.Transfer

  /// The images whose entries are prefetched: most data is in one of the first.
  private static let fetched = 4

  private let disk: Qcow2Disk
  /// From the top down.
  private let images: UnsafeMutablePointer<Image>
  private let count: Int
  private let isWritten: Bool
  private let streamedFrom: Int
  /// Faults of all mappings of the process, and how many of them are known to concern others.
  private let faults = FaultGuard.counter
  private var seen: UInt64
  /// System calls made.
  private(set) var calls: UInt64 = 0

  init(_ disk: Qcow2Disk) {
    self.disk = disk
    isWritten = disk.writer != nil
    count = disk.layers.count
    unsafe images = .allocate(capacity: count)
    for (index, layer) in disk.layers.enumerated() {
      let (mapping, file) = (disk.mappings[index]?.view, layer.dataFile.rawValue)
      unsafe (images + index).initialize(to: Image(map: layer.map, mapping: mapping, descriptor: file))
    }
    streamedFrom = CopyKernel.streamedFrom(imageSize: disk.size)
    seen = disk.hasLostMapping ? .max : faults.loadRelaxed()
  }

  deinit { unsafe images.deallocate() }

  // MARK: Lookup

  /// Brings what `find` needs into the CPU's caches, without waiting for it.
  @inline(__always)
  func fetch(_ offset: UInt64) -> Qcow2Place {
    let entry = unsafe images.pointee.map.entry(of: offset)
    if let entry = unsafe entry { unsafe clinux_prefetch(entry, 1) }
    if count > 1 { fetchLower(offset) }
    return unsafe .unknown(entry: entry)
  }

  private func fetchLower(_ offset: UInt64) {
    for index in 1..<min(count, Self.fetched) {
      if let entry = unsafe images[index].map.entry(of: offset) { unsafe clinux_prefetch(entry, 1) }
    }
  }

  /// Where the data of a transfer is, if it is in one piece of a file, and may be written there.
  ///
  /// Nothing is moved or freed while the image is open: whatever changes until the copy is made, the place remains that of this
  /// data. If it becomes a hole meanwhile, the copy fills it. If the entry was in the shared table of zeroes, it is looked for
  /// again: by now it may be in a table of its own.
  ///
  /// - Parameter entry: that of the topmost image, as `fetch` found it.
  @inline(__always)
  func find(
    _ kind: IOOperation.Kind, isDurable: Bool, _ offset: UInt64, _ length: UInt64, entry: UnsafeMutableRawPointer?
  ) -> Qcow2Place {
    guard unsafe kind == .read || isWritten && !isDurable && !images.pointee.map.contradictsItself else { return .elsewhere }
    guard let entry = unsafe entry else { return unsafe Self.findElsewhere(kind, offset, length, images, count) }
    switch unsafe images.pointee.map.glance(at: offset, length, entry: entry) {
    case .data(let place, let isOwn): return unsafe Self.found(0, kind, place, length, isOwn: isOwn, images)
    case .absent, .unclear: return unsafe Self.findElsewhere(kind, offset, length, images, count)
    }
  }

  /// In any of the images. It takes no `self`: the fast path would make a copy of that.
  @inline(never)
  private static func findElsewhere(
    _ kind: IOOperation.Kind, _ offset: UInt64, _ length: UInt64, _ images: UnsafeMutablePointer<Image>, _ count: Int
  ) -> Qcow2Place {
    for index in 0..<count {
      let image = unsafe images + index
      switch unsafe image.pointee.map.glance(at: offset, length) {
      case .absent: continue
      case .data(let place, let isOwn): return unsafe found(index, kind, place, length, isOwn: isOwn, images)
      case .unclear: break
      }
      let piece = unsafe image.pointee.map.look(at: offset, limit: length)
      guard let piece, piece.count == length else { return .elsewhere }
      switch piece.kind {
      case .absent: continue
      case .data(let place): return unsafe found(index, kind, place, length, isOwn: piece.isOwn, images)
      case .zero, .compressed, .notLoaded, .failed: return .elsewhere
      }
    }
    return .elsewhere
  }

  @inline(__always)
  private static func found(
    _ index: Int, _ kind: IOOperation.Kind, _ place: UInt64, _ length: UInt64, isOwn: Bool,
    _ images: UnsafeMutablePointer<Image>
  ) -> Qcow2Place {
    // Data that is shared with a backing file or a snapshot is not written in place.
    guard kind == .read || index == 0 && isOwn else { return .elsewhere }
    let image = Int16(truncatingIfNeeded: index)
    guard let mapping = unsafe images[index].mapping, mapping.has(kind, at: place, length) else {
      return .inFile(place, image: image)
    }
    mapping.windows.spot(place, length).fetch()
    return unsafe .mapped(mapping.address(of: place), image: image)
  }

  /// Whether all of it can be copied: at once, or in a moment. - Parameter place: what `find` returned.
  @inline(__always)
  func canCopy(_ place: Qcow2Place, _ length: UInt64) -> Bool {
    guard case .mapped(let address, let index) = place, let mapping = unsafe images[Int(index)].mapping else {
      return false
    }
    let place = unsafe mapping.place(of: address)
    return mapping.windows.isData(place, length) || disk.comesToBeData(Int(index), place, length)
  }

  /// The part of a file that has all of it. - Parameter place: what `find` returned.
  private func inFile(_ place: Qcow2Place) -> (place: UInt64, image: Int)? {
    switch place {
    case .inFile(let place, let image): return (place, Int(image))
    case .mapped(let address, let image): return unsafe (images[Int(image)].mapping?.place(of: address) ?? 0, Int(image))
    case .unknown, .elsewhere, .done: return nil
    }
  }

  /// Reads data with one system call.
  ///
  /// - Parameters:
  ///   - place: what `find` returned.
  ///   - mayWait: otherwise only what is in the page cache is read.
  /// - Returns: whether it has all of it; `nil`: its data is not in one piece.
  mutating func reads(_ operation: IOOperation, _ place: Qcow2Place, mayWait: Bool) -> Bool? {
    guard operation.kind == .read, let (place, image) = inFile(place), let segments = unsafe operation.segments else {
      return nil
    }
    calls &+= 1
    let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
    return unsafe preadv2(
      images[image].descriptor, vectors, Int32(operation.segmentCount), off_t(place), mayWait ? 0 : clinux_rwf_nowait)
      == Int(operation.length)
  }

  // MARK: Copies

  /// Or there was a fault since, of which it is not known yet whom it concerns.
  var isCut: Bool {
    @inline(__always) get { faults.loadRelaxed() != seen }
  }

  /// Whether nothing was lost, now that it is known whom the faults concern.
  mutating func isWhole() -> Bool {
    if isCut { findCause() }
    return !isCut
  }

  @inline(never)
  private mutating func findCause() {
    // Before the mappings are asked, so that a fault in between is seen the next time.
    let now = faults.loadAfterLoads()
    if !disk.hasLostMapping { seen = now }
  }

  @inline(__always)
  func isData(_ operation: IOOperation, _ place: Qcow2Place) -> Bool {
    if case .mapped = place { true } else { false }
  }

  /// Is only touched if there is data.
  @inline(__always)
  func address(of operation: IOOperation, _ place: Qcow2Place) -> UnsafeMutableRawPointer {
    guard case .mapped(let address, _) = place else { return unsafe UnsafeMutableRawPointer(images) }
    return unsafe address
  }

  @inline(__always)
  mutating func perform(_ operation: IOOperation, _ place: Qcow2Place) -> Int32 {
    guard case .mapped(let address, _) = place else {
      guard case .done(let result) = place else { preconditionFailure("a transfer was not looked up") }
      return result
    }
    guard !isCut else { return performOtherwise(operation) }
    if operation.kind == .read {
      unsafe CopyKernel.read(operation, from: address)
    } else {
      unsafe CopyKernel.write(operation, to: address, streamedFrom: streamedFrom)
    }
    return result(of: operation)
  }

  @inline(__always)
  mutating func result(of operation: IOOperation) -> Int32 {
    guard faults.loadAfterLoads() == seen else { return performOtherwise(operation) }
    return Int32(truncatingIfNeeded: operation.length)
  }

  /// The mapping may be lost: a system call repeats the transfer, and returns the exact error.
  @inline(never)
  private mutating func performOtherwise(_ operation: IOOperation) -> Int32 {
    findCause()
    calls &+= 1
    return disk.perform(operation)
  }
}
