/// The lanes of one worker by their numbers: in fixed places, so that finding the lane of a tag costs one addition.
internal import VirtioCore

@safe
struct LaneTable<Ring: Virtqueue & ~Copyable>: ~Copyable {
  let capacity: Int
  private let lanes: UnsafeMutablePointer<Lane<Ring>>
  /// Whether there is a lane at a place; kept beside the lanes, so that checking it is one load.
  private let isPresent: UnsafeMutablePointer<Bool>

  init(capacity: Int) {
    self.capacity = capacity
    unsafe lanes = .allocate(capacity: capacity)
    unsafe isPresent = .allocate(capacity: capacity)
    unsafe isPresent.initialize(repeating: false, count: capacity)
  }

  deinit {
    for index in 0..<capacity where unsafe isPresent[index] { unsafe (lanes + index).deinitialize(count: 1) }
    unsafe lanes.deallocate()
    unsafe isPresent.deallocate()
  }

  /// The table has no lane.
  var isEmpty: Bool { !(0..<capacity).contains { unsafe isPresent[$0] } }

  /// A place without a lane; `nil` if all are taken.
  var free: Int? { (0..<capacity).first { unsafe !isPresent[$0] } }

  @inline(__always)
  func contains(_ index: Int) -> Bool { unsafe isPresent[index] }

  /// A lane, which may be changed while others are read. - Parameter index: that of an existing lane.
  @inline(__always)
  subscript(index: Int) -> UnsafeMutablePointer<Lane<Ring>> { unsafe lanes + index }

  mutating func insert(_ lane: consuming Lane<Ring>, at index: Int) {
    precondition(unsafe !isPresent[index], "a lane was put where another one is")
    unsafe (lanes + index).initialize(to: lane)
    unsafe isPresent[index] = true
  }

  mutating func remove(_ index: Int) {
    guard unsafe isPresent[index] else { return }
    unsafe (lanes + index).deinitialize(count: 1)
    unsafe isPresent[index] = false
  }
}
