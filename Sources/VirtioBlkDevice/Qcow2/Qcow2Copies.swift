/// Copies from and to the mappings of a disk of qcow2 images.
internal import CLinux
internal import Glibc
internal import VirtioCore

/// Where the data of a transfer is mapped.
@safe
struct MappedPlace {
  /// `nil`: the transfer was not a copy, and is done.
  let address: UnsafeMutableRawPointer?
  /// Its result then: bytes, or a negative errno.
  let result: Int32

  /// - Parameter result: of a transfer that was not a copy.
  static func done(_ result: Int32) -> Self { unsafe Self(address: nil, result: result) }
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

  /// What was found out about a transfer's data, if it is in one piece.
  @safe
  struct Found {
    /// −1: it is not in one piece.
    fileprivate var image = -1
    /// In the image's data file, bytes.
    fileprivate var place: UInt64 = 0
    /// Where it is mapped; `nil`: nowhere.
    fileprivate var address: UnsafeMutableRawPointer?
    /// What is known about the mapping there.
    fileprivate var spot: PopulatedWindows.Spot?

    var isSomething: Bool {
      @inline(__always) get { image >= 0 }
    }
  }

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

  /// Brings what `find` needs into the CPU's caches, without waiting for it. - Returns: where the entry of the topmost image is.
  @inline(__always)
  func fetch(_ offset: UInt64) -> UnsafeMutableRawPointer? {
    let entry = unsafe images.pointee.map.entry(of: offset)
    if let entry = unsafe entry { unsafe clinux_prefetch(entry, 1) }
    if count > 1 { fetchLower(offset) }
    return unsafe entry
  }

  private func fetchLower(_ offset: UInt64) {
    for index in 1..<min(count, Self.fetched) {
      if let entry = unsafe images[index].map.entry(of: offset) { unsafe clinux_prefetch(entry, 1) }
    }
  }

  /// Where the data of a transfer is, if it is in one piece of a file, and may be written there.
  ///
  /// Nothing is moved or freed while the image is open: whatever changes until the copy is made, the place remains that of this
  /// data. If it becomes a hole meanwhile, the copy fills it. If the entry was in the shared table of zeroes and has got a table
  /// of its own since, what is found is what was there when the transfer was started.
  ///
  /// - Parameter entry: what `fetch` returned.
  @inline(__always)
  func find(
    _ kind: IOOperation.Kind, isDurable: Bool, _ offset: UInt64, _ length: UInt64, entry: UnsafeMutableRawPointer?
  ) -> Found {
    guard unsafe kind == .read || isWritten && !isDurable && !images[0].map.contradictsItself else { return Found() }
    var entry = unsafe entry
    for index in 0..<count {
      let image = unsafe images + index
      if index > 0 { unsafe entry = image.pointee.map.entry(of: offset) }
      switch unsafe image.pointee.map.glance(at: offset, length, entry: entry) {
      case .absent: continue
      case .data(let place, let isOwn): return found(index, kind, place, length, isOwn: isOwn)
      case .unclear:
        let piece = unsafe image.pointee.map.look(at: offset, limit: length)
        guard let piece, piece.count == length else { return Found() }
        switch piece.kind {
        case .absent: continue
        case .data(let place): return found(index, kind, place, length, isOwn: piece.isOwn)
        case .zero, .compressed, .notLoaded, .failed: return Found()
        }
      }
    }
    return Found()
  }

  @inline(__always)
  private func found(_ index: Int, _ kind: IOOperation.Kind, _ place: UInt64, _ length: UInt64, isOwn: Bool) -> Found {
    // Data that is shared with a backing file or a snapshot is not written in place.
    guard kind == .read || index == 0 && isOwn else { return Found() }
    var found = unsafe Found(image: index, place: place)
    guard let mapping = unsafe images[index].mapping, mapping.has(kind, at: place, length) else { return found }
    let spot = mapping.windows.spot(place, length)
    spot.fetch()
    unsafe (found.address, found.spot) = (mapping.address(of: place), spot)
    return found
  }

  /// Where it is mapped, if all of it can be copied: at once, or in a moment.
  @inline(__always)
  func place(of found: Found, _ length: UInt64) -> MappedPlace? {
    guard let address = unsafe found.address, let spot = found.spot,
      spot.isData || disk.comesToBeData(found.image, found.place, length)
    else { return nil }
    return unsafe MappedPlace(address: address, result: 0)
  }

  /// Reads data with one system call.
  ///
  /// - Parameter mayWait: otherwise only what is in the page cache is read.
  /// - Returns: whether it has all of it.
  mutating func reads(_ operation: IOOperation, _ found: Found, mayWait: Bool) -> Bool {
    guard operation.kind == .read, let segments = unsafe operation.segments else { return false }
    calls &+= 1
    let vectors = unsafe UnsafeRawPointer(segments).assumingMemoryBound(to: iovec.self)
    return unsafe preadv2(
      images[found.image].descriptor, vectors, Int32(operation.segmentCount), off_t(found.place),
      mayWait ? 0 : clinux_rwf_nowait) == Int(operation.length)
  }

  // MARK: Copies

  /// Or there was a fault since, of which it is not known yet whom it concerns.
  var isCut: Bool {
    @inline(__always) get { faults.loadRelaxed() != seen }
  }

  @inline(__always)
  func isData(_ operation: IOOperation, _ place: MappedPlace) -> Bool { unsafe place.address != nil }

  /// Is only touched if there is data.
  @inline(__always)
  func address(of operation: IOOperation, _ place: MappedPlace) -> UnsafeMutableRawPointer {
    unsafe place.address ?? UnsafeMutableRawPointer(images)
  }

  @inline(__always)
  mutating func perform(_ operation: IOOperation, _ place: MappedPlace) -> Int32 {
    guard let address = unsafe place.address else { return place.result }
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
    // Before the mappings are asked, so that a fault in between is seen the next time.
    let now = faults.loadAfterLoads()
    if !disk.hasLostMapping { seen = now }
    calls &+= 1
    return disk.perform(operation)
  }
}
