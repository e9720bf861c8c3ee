/// What an RBD engine remembers about each request in flight.
internal import CLinux
internal import Glibc
internal import SystemPackage
internal import VirtioCore

/// One operation, to which the library reports its completion. All zeroes is a valid value: no operation.
@safe
struct RBDRequest {
  /// What the library's thread needs.
  var board: Unmanaged<CompletionBoard>?
  var functions: UnsafeMutablePointer<clinux_rbd>?
  var tag: UInt32
  /// The operation is done, and is being made stable by a flush.
  var isSettling = false
  var operation: IOOperation
}

/// By tag. The memory is only mapped: what is not used costs none.
@safe
struct RBDRequests: ~Copyable {
  private let area: Mapping
  let base: UnsafeMutablePointer<RBDRequest>

  /// - Parameter count: tags are below it.
  init(count: Int) throws(Errno) {
    area = try Mapping(anonymous: max(1, count) * MemoryLayout<RBDRequest>.stride)
    unsafe base = area.base.bindMemory(to: RBDRequest.self, capacity: max(1, count))
  }

  /// Called by a thread of the library when a request is over: posts the result, and wakes the worker.
  static let completed: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void = { completion, argument in
    guard let request = unsafe argument?.assumingMemoryBound(to: RBDRequest.self) else { return }
    // Copied, because the slot can hold another request as soon as this one is posted.
    let (board, tag, functions) = unsafe (request.pointee.board, request.pointee.tag, request.pointee.functions)
    guard let board = unsafe board, let functions = unsafe functions else { return }
    let result = unsafe functions.pointee.aio_get_return_value(completion)
    unsafe functions.pointee.aio_release(completion)
    unsafe board._withUnsafeGuaranteedRef { $0.post(tag: tag, result: Int32(clamping: result)) }
  }
}
