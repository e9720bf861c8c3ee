/// The protocol by which driver and device publish, notify and sleep, checked in every interleaving of a small model. Each side
/// has a store buffer: a store becomes visible later, and out of order unless a release store or a fence prevents that. Both
/// formats follow the steps of this project's rings; a fence that is left out has to be found.
import Testing

/// A small ring that is used again and again, and what both sides do with it.
struct NotificationModel: Sendable, CustomTestStringConvertible {
  enum Format: String, CaseIterable, Sendable { case split, packed }

  /// One thing that is left out.
  enum Omission: String, CaseIterable, Sendable {
    case driverFenceBeforeKick, driverFenceBeforeSleep, deviceFenceBeforeCall, deviceFenceBeforeSleep
    case driverLookBeforeSleep, deviceLookBeforeSleep, driverRelease, deviceRelease
  }

  var format: Format
  /// The sides ask for notification at an event; without events, they say yes or no.
  var hasEvents: Bool
  /// The most chains that the device answers at once.
  var batch = 1
  var omission: Omission?
  /// Slots of the ring.
  var size = 2
  var chains = 4

  var testDescription: String {
    "\(format)\(hasEvents ? " with events" : ""), \(batch) at once\(omission.map { ", without \($0)" } ?? "")"
  }

  // MARK: memory

  /// Addresses of words: the indices of a split ring or the flags of a packed ring's slots, two wishes, requests, answers.
  private var flags: Int { 0 }
  private var availableIndex: Int { 0 }
  private var usedIndex: Int { 1 }
  private var deviceWish: Int { size + 2 }
  private var driverWish: Int { size + 4 }
  private var requests: Int { size + 6 }
  private var answers: Int { 2 * size + 6 }
  private var words: Int { 3 * size + 6 }
  /// The words of a wish: split: the event, or a flag. Packed: the position, then flags (0 always, 1 never, 2 at the position).
  private func position(_ wish: Int) -> Int { wish }
  private func flag(_ wish: Int) -> Int { format == .packed ? wish + 1 : wish }

  /// A store that is not yet visible to the other side.
  struct Store: Hashable {
    var word: Int
    var value: UInt16
    /// Becomes visible only after all earlier stores.
    var isRelease: Bool
  }

  enum Step: Hashable {
    // Both sides' steps, in order.
    case begin, fill, show, fence, readWish, decide, look, wish, wishFlags, sleepFence, lookAgain, sleep, unwish, over
  }

  /// The driver or the device.
  struct Side: Hashable {
    var step = Step.begin
    /// Chains that it has published.
    var shown = 0
    /// Chains that it has prepared and not yet published.
    var made = 0
    /// Chains that it has taken from the other side.
    var taken = 0
    /// Chains published since its last decision.
    var undecided = 0
    var wishFlags: UInt16 = 0
    var buffer: [Store] = []
  }

  struct State: Hashable {
    var memory: [UInt16]
    var driver = Side()
    var device = Side(step: .look)
    /// An eventfd each.
    var kick = false
    var call = false
  }

  enum Finding: Hashable {
    /// Both sides sleep, or cannot continue, and some chains are not answered or not reaped.
    case lost
    /// A word was visible before the stores that it announces.
    case stale
  }

  // MARK: the ring's arithmetic

  /// Near the wrap of 16 bits, so that indices cross it.
  private func index(_ count: Int) -> UInt16 { UInt16(truncatingIfNeeded: 0xfffe + count) }
  private func slot(_ count: Int) -> Int { count % size }
  /// The wrap counter at the `count`-th slot.
  private func wrap(_ count: Int) -> Bool { count / size % 2 == 0 }
  private func word(_ count: Int) -> UInt16 {
    format == .split ? index(count) : UInt16(slot(count)) | (wrap(count) ? 0x8000 : 0)
  }
  private func availableMarks(_ count: Int) -> UInt16 { wrap(count) ? 0x80 : 0x8000 }
  private func usedMarks(_ count: Int) -> UInt16 { wrap(count) ? 0x8080 : 0 }

  /// Whether `wanted` is one of the words from the `old`-th chain up to the `new`-th.
  private func isPassed(_ wanted: UInt16, from old: Int, to new: Int) -> Bool { (old..<new).contains { word($0) == wanted } }

  // MARK: what a side sees and does

  private func load(_ word: Int, _ side: Side, _ memory: [UInt16]) -> UInt16 {
    side.buffer.last { $0.word == word }?.value ?? memory[word]
  }

  /// Whether the next chain is visible to the device.
  private func isAvailable(_ state: State) -> Bool {
    let next = state.device.taken
    switch format {
    case .split: return load(availableIndex, state.device, state.memory) != index(next)
    case .packed: return load(flags + slot(next), state.device, state.memory) == availableMarks(next)
    }
  }

  private func isUsed(_ state: State) -> Bool {
    let next = state.driver.taken
    switch format {
    case .split: return load(usedIndex, state.driver, state.memory) != index(next)
    case .packed: return next < state.driver.shown && load(flags + slot(next), state.driver, state.memory) == usedMarks(next)
    }
  }

  private func start() -> State {
    var memory = Array(repeating: 0 as UInt16, count: words)
    if format == .split { (memory[availableIndex], memory[usedIndex]) = (index(0), index(0)) }
    // A split ring's events start with its indices; the driver does not want a call until it sleeps.
    if format == .split, hasEvents { (memory[deviceWish], memory[driverWish]) = (index(0), index(-1)) }
    if !(format == .split && hasEvents) { memory[flag(driverWish)] = 1 }
    return State(memory: memory)
  }

  /// Every possible next state, or a finding if something is wrong.
  private func successors(of state: State) -> Result<[State], ModelError> {
    var next: [State] = []
    for side in [\State.driver, \State.device] {
      let buffer = state[keyPath: side].buffer
      for (place, store) in buffer.enumerated() {
        // Stores to the same word stay in order; a release store follows all stores before it.
        let before = buffer[..<place]
        guard !before.contains(where: { $0.word == store.word }), !store.isRelease || before.isEmpty else { continue }
        var flushed = state
        flushed.memory[store.word] = store.value
        flushed[keyPath: side].buffer.remove(at: place)
        next.append(flushed)
      }
    }
    do throws(ModelError) {
      if let driver = try stepDriver(state) { next.append(driver) }
      if let device = try stepDevice(state) { next.append(device) }
    } catch { return .failure(error) }
    return .success(next)
  }

  struct ModelError: Error { let finding: Finding }

  /// Asks for a notification, in one step or, for a packed ring's event, in two. - Returns: the next step.
  private func wish(_ words: Int, at event: UInt16, _ side: inout Side) -> Step {
    switch (format, hasEvents) {
    case (.split, true): side.buffer.append(Store(word: words, value: event, isRelease: false))
    case (_, false): side.buffer.append(Store(word: flag(words), value: 0, isRelease: false))
    case (.packed, true):
      side.buffer.append(Store(word: position(words), value: event, isRelease: false))
      return .wishFlags
    }
    return .sleepFence
  }

  private func unwish(_ words: Int, _ side: inout Side) {
    // A split ring's event becomes stale without a store.
    if !(format == .split && hasEvents) { side.buffer.append(Store(word: flag(words), value: 1, isRelease: false)) }
  }

  /// Decides about a notification. - Returns: whether one is due; `nil`: another word has to be read first.
  private func decide(_ wish: Int, _ side: inout Side, _ memory: [UInt16], from old: Int, to new: Int) -> Bool? {
    switch (format, hasEvents, side.step) {
    case (.split, true, _): return isPassed(load(wish, side, memory), from: old, to: new)
    case (_, false, _): return load(flag(wish), side, memory) == 0
    case (.packed, true, .readWish):
      side.wishFlags = load(flag(wish), side, memory)
      return side.wishFlags == 2 ? nil : side.wishFlags == 0
    case (.packed, true, _): return isPassed(load(position(wish), side, memory), from: old, to: new)
    }
  }

  // MARK: the driver

  /// One step of the driver; `nil` if it can make none.
  private func stepDriver(_ state: State) throws(ModelError) -> State? {
    var new = state
    var side: Side {
      get { new.driver }
      set { new.driver = newValue }
    }
    switch side.step {
    case .begin:
      side.step = side.shown < chains && side.shown - side.taken < size ? .fill : .look
    case .fill:
      side.buffer.append(Store(word: requests + slot(side.shown), value: UInt16(side.shown + 1), isRelease: false))
      side.step = .show
    case .show:
      let isRelease = omission != .driverRelease
      switch format {
      case .split: side.buffer.append(Store(word: availableIndex, value: index(side.shown + 1), isRelease: isRelease))
      case .packed:
        side.buffer.append(
          Store(word: flags + slot(side.shown), value: availableMarks(side.shown), isRelease: isRelease))
      }
      side.shown += 1
      side.step = .fence
    case .fence:
      guard side.buffer.isEmpty || omission == .driverFenceBeforeKick else { return nil }
      side.step = .readWish
    case .readWish, .decide:
      if let isDue = decide(deviceWish, &side, new.memory, from: side.shown - 1, to: side.shown) {
        if isDue { new.kick = true }
        side.step = .look
      } else {
        side.step = .decide
      }
    case .look:
      guard isUsed(state) else {
        side.step = side.shown < chains && side.shown - side.taken < size ? .fill : .wish
        break
      }
      guard load(answers + slot(side.taken), side, new.memory) == UInt16(side.taken + 1) else {
        throw ModelError(finding: .stale)
      }
      side.taken += 1
      if side.taken == chains { side.step = .over }
    case .wish: side.step = wish(driverWish, at: word(side.taken), &side)
    case .wishFlags:
      side.buffer.append(Store(word: flag(driverWish), value: 2, isRelease: true))
      side.step = .sleepFence
    case .sleepFence:
      guard side.buffer.isEmpty || omission == .driverFenceBeforeSleep else { return nil }
      side.step = .lookAgain
    case .lookAgain: side.step = omission != .driverLookBeforeSleep && isUsed(state) ? .unwish : .sleep
    case .sleep:
      guard new.call else { return nil }
      new.call = false
      side.step = .unwish
    case .unwish:
      unwish(driverWish, &side)
      side.step = .look
    case .over: return nil
    }
    return new
  }

  // MARK: the device

  private func stepDevice(_ state: State) throws(ModelError) -> State? {
    var new = state
    var side: Side {
      get { new.device }
      set { new.device = newValue }
    }
    switch side.step {
    case .look, .begin:
      if side.made < batch, isAvailable(state) {
        side.step = .fill
      } else {
        side.step = side.made > 0 ? .show : .wish
      }
    case .fill:
      guard load(requests + slot(side.taken), side, new.memory) == UInt16(side.taken + 1) else {
        throw ModelError(finding: .stale)
      }
      side.buffer.append(Store(word: answers + slot(side.taken), value: UInt16(side.taken + 1), isRelease: false))
      side.taken += 1
      side.made += 1
      side.step = .look
    case .show:
      let isRelease = omission != .deviceRelease
      switch format {
      case .split:
        side.buffer.append(Store(word: usedIndex, value: index(side.shown + side.made), isRelease: isRelease))
      case .packed:
        // The first chain's flags last.
        for count in (side.shown..<side.shown + side.made).reversed() {
          side.buffer.append(
            Store(word: flags + slot(count), value: usedMarks(count), isRelease: isRelease && count == side.shown))
        }
      }
      side.shown += side.made
      side.undecided = side.made
      side.made = 0
      side.step = .fence
    case .fence:
      guard side.buffer.isEmpty || omission == .deviceFenceBeforeCall else { return nil }
      side.step = .readWish
    case .readWish, .decide:
      if let isDue = decide(driverWish, &side, new.memory, from: side.shown - side.undecided, to: side.shown) {
        if isDue { new.call = true }
        side.step = .look
      } else {
        side.step = .decide
      }
    case .wish: side.step = wish(deviceWish, at: word(side.taken), &side)
    case .wishFlags:
      side.buffer.append(Store(word: flag(deviceWish), value: 2, isRelease: true))
      side.step = .sleepFence
    case .sleepFence:
      guard side.buffer.isEmpty || omission == .deviceFenceBeforeSleep else { return nil }
      side.step = .lookAgain
    case .lookAgain: side.step = omission != .deviceLookBeforeSleep && isAvailable(state) ? .unwish : .sleep
    case .sleep:
      guard new.kick else { return nil }
      new.kick = false
      side.step = .unwish
    case .unwish:
      unwish(deviceWish, &side)
      side.step = .look
    case .over: return nil
    }
    return new
  }

  // MARK: the search

  /// Visits every reachable state. - Returns: everything that is wrong in any of them, and how many there are.
  func explore() -> (findings: Set<Finding>, states: Int) {
    let first = start()
    var seen: Set<State> = [first]
    var open = [first]
    var findings: Set<Finding> = []
    while let state = open.popLast() {
      switch successors(of: state) {
      case .failure(let error): findings.insert(error.finding)
      case .success(let next):
        // No side can make a step: right only if the driver has everything.
        if next.isEmpty, state.driver.step != .over { findings.insert(.lost) }
        for state in next where seen.insert(state).inserted { open.append(state) }
      }
      // One finding is enough if something was left out.
      if omission != nil, !findings.isEmpty { break }
    }
    return (findings, seen.count)
  }
}

struct NotificationModelTests {
  static let rings = NotificationModel.Format.allCases.flatMap { format in
    [false, true].map { NotificationModel(format: format, hasEvents: $0) }
  }

  @Test("no chain is lost and nothing is seen too early, in any interleaving", arguments: rings, [1, 2])
  func complete(_ ring: NotificationModel, batch: Int) {
    var model = ring
    model.batch = batch
    let (findings, states) = model.explore()
    #expect(findings.isEmpty)
    // A model that ends at once would prove nothing.
    #expect(states > 1000)
  }

  @Test("an omitted fence is found", arguments: rings, NotificationModel.Omission.allCases)
  func omission(_ ring: NotificationModel, omission: NotificationModel.Omission) {
    var model = ring
    model.omission = omission
    let isOrder = omission == .driverRelease || omission == .deviceRelease
    #expect(model.explore().findings == [isOrder ? .stale : .lost])
  }
}
