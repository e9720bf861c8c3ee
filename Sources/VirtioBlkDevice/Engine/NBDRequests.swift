/// What an NBD engine remembers about everything in flight.
internal import CLinux
internal import SystemPackage
internal import VirtioCore

/// One operation. All zeroes is a valid value: no operation.
@safe
struct NBDRequest {
  enum State: UInt8 {
    case none
    /// To be sent when there is a connection.
    case waiting
    case sent
    /// The write is done, and is being made stable by a flush.
    case settling
    /// A flush that fails, because what it had to make stable is lost.
    case lost
  }

  var operation = unsafe IOOperation(kind: .read)
  var state = State.none
  /// Its index among those in flight.
  var place: UInt32 = 0
  /// The number of its bounce buffer, plus 1; 0: none.
  var buffer: UInt32 = 0
  /// Its number in the order in which they were requested.
  var sequence: UInt64 = 0
  /// For a flush: how many writes it covers.
  var covers: UInt64 = 0
}

/// By tag: what was requested, and the job that the library reports to. The memory is only mapped: what is not used costs none.
@safe
struct NBDRequests: ~Copyable {
  private let area: Mapping
  private let requests: UnsafeMutablePointer<NBDRequest>
  private let jobs: UnsafeMutablePointer<clinux_nbd_job>
  private let done: UnsafeMutablePointer<clinux_nbd_done>
  /// Tags in flight, in no particular order.
  private(set) var active: [UInt32] = []

  /// - Parameter count: tags are below it.
  init(count: Int) throws(Errno) {
    let count = max(1, count)
    let jobsAt = count * MemoryLayout<NBDRequest>.stride
    let tagsAt = unsafe jobsAt + count * MemoryLayout<clinux_nbd_job>.stride
    let doneAt = tagsAt + (count + 1) / 2 * 2 * MemoryLayout<UInt32>.stride
    area = unsafe try Mapping(anonymous: doneAt + MemoryLayout<clinux_nbd_done>.stride)
    unsafe requests = area.base.bindMemory(to: NBDRequest.self, capacity: count)
    unsafe jobs = (area.base + jobsAt).bindMemory(to: clinux_nbd_job.self, capacity: count)
    let tags = unsafe (area.base + tagsAt).bindMemory(to: UInt32.self, capacity: count)
    unsafe done = (area.base + doneAt).bindMemory(to: clinux_nbd_done.self, capacity: 1)
    unsafe done.initialize(to: clinux_nbd_done(tags: tags, room: UInt32(count), first: 0, count: 0))
    active.reserveCapacity(min(count, LaneContext.slots))
  }

  @inline(__always)
  subscript(tag: UInt32) -> UnsafeMutablePointer<NBDRequest> { unsafe requests + Int(tag) }

  /// The job that the library reports to: valid for as long as this value lives.
  @inline(__always)
  func job(_ tag: UInt32) -> UnsafeMutablePointer<clinux_nbd_job> { unsafe jobs + Int(tag) }

  /// Whether any request is over.
  var hasDone: Bool { unsafe done.pointee.count > 0 }
  /// The oldest request that is over; there has to be one.
  func nextDone() -> UInt32 { unsafe clinux_nbd_pop(done) }

  mutating func add(_ tag: UInt32, _ operation: IOOperation, sequence: UInt64) {
    let request = unsafe requests + Int(tag)
    unsafe request.initialize(to: NBDRequest())
    unsafe request.pointee.operation = operation
    unsafe request.pointee.state = .waiting
    unsafe request.pointee.sequence = sequence
    unsafe request.pointee.place = UInt32(active.count)
    active.append(tag)
  }

  mutating func remove(_ tag: UInt32) {
    let request = unsafe requests + Int(tag)
    let place = unsafe Int(request.pointee.place)
    let last = active.removeLast()
    if last != tag {
      active[place] = last
      unsafe requests[Int(last)].place = UInt32(place)
    }
    unsafe request.pointee.state = .none
  }

  /// Commands are about to be sent; the request is not over before `endSending`, however soon they are.
  func beginSending(_ tag: UInt32) {
    unsafe jobs[Int(tag)] = clinux_nbd_job(done: done, tag: tag, left: 1, error: 0)
  }

  func endSending(_ tag: UInt32) {
    let job = unsafe jobs + Int(tag)
    unsafe job.pointee.left -= 1
    if unsafe job.pointee.left == 0 { unsafe clinux_nbd_push(done, tag) }
  }

  /// Ends a request without the server. - Parameter error: an errno.
  func fail(_ tag: UInt32, _ error: Int32) {
    unsafe jobs[Int(tag)] = clinux_nbd_job(done: done, tag: tag, left: 0, error: error)
    unsafe clinux_nbd_push(done, tag)
  }
}
