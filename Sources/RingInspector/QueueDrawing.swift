/// A queue drawn for people, in plain text of at most 80 columns.
internal import VirtioCore

/// Turns a picture into lines.
public struct QueueDrawing {
  /// Columns inside the frame.
  private static let width = 76
  /// Used chains drawn; older ones are counted.
  private static let usedLimit = 4
  /// Pending chains drawn; further ones are counted.
  private static let pendingLimit = 16
  /// Descriptors drawn of one table of a chain.
  private static let descriptorLimit = 12
  /// Slots drawn of a packed ring.
  private static let packedLimit = 32
  /// Problems of the queue as a whole that are shown.
  private static let problemLimit = 8

  private var lines: [String] = []

  /// - Parameters:
  ///   - isServed: a device serves the queue, so a pending chain may be in flight.
  ///   - doorbells: how often the two have been rung, if there are any.
  public static func draw(
    _ picture: QueuePicture, isServed: Bool = false, doorbells: (kicks: UInt32, calls: UInt32)? = nil
  ) -> [String] {
    var drawing = QueueDrawing()
    drawing.drawHead(picture, doorbells)
    if let packed = picture.packed { drawing.draw(packed) }
    drawing.drawUsed(picture)
    drawing.drawPending(picture, isServed: isServed)
    for problem in picture.problems.prefix(problemLimit) { drawing.add("✗ \(problem)") }
    if picture.problems.count > problemLimit { drawing.add("✗ … and \(picture.problems.count - problemLimit) more") }
    let state = picture.ready ? "ready" : "not ready"
    let title = " queue \(picture.queue) ── \(picture.configuration.size) entries ── \(state) "
    let rule = String(repeating: "─", count: max(0, width + 1 - title.count))
    return ["┌─\(title)\(rule)┐"] + drawing.lines.flatMap(fitted).map(frame) + ["└\(String(repeating: "─", count: width + 2))┘"]
  }

  private static func frame(_ line: String) -> String {
    "│ \(line)\(String(repeating: " ", count: max(width - line.count, 0))) │"
  }

  /// Breaks a line that is too long, at a space if it has one, and indents the rest.
  private static func fitted(_ line: String) -> [String] {
    var (lines, rest) = ([String](), line)
    let indent = String(repeating: " ", count: min(line.prefix { $0 == " " }.count + 4, width / 4))
    while rest.count > width {
      var part = rest.prefix(width + 1)
      if let space = part.lastIndex(of: " "), part[..<space].contains(where: { $0 != " " }) {
        part = part[..<space]
      } else {
        part = part.dropLast()
      }
      rest = indent + rest[part.endIndex...].drop { $0 == " " }
      lines.append(String(part))
    }
    return lines + [rest]
  }

  private mutating func add(_ line: String) { lines.append(line) }

  // MARK: Rings

  private mutating func drawHead(_ picture: QueuePicture, _ doorbells: (kicks: UInt32, calls: UInt32)?) {
    let configuration = picture.configuration
    let names = picture.features.contains(.packedRing) ? ("driver events", "device events") : ("available", "used")
    add(
      "descriptors \(configuration.descriptorTable)   \(names.0) \(configuration.availableRing)   "
        + "\(names.1) \(configuration.usedRing)")
    if let rings = picture.rings {
      let hasEvents = picture.features.contains(.eventIndex)
      let slot = picture.configuration.size - 1
      let available = "available  idx \(rings.availableIndex) (slot \(rings.availableIndex & slot))"
      let used = "used       idx \(rings.usedIndex) (slot \(rings.usedIndex & slot))"
      let column = max(available.count, used.count) + 3
      func pad(_ text: String) -> String { text + String(repeating: " ", count: column - text.count) }
      add(
        pad(available) + "flags \(rings.availableFlags)\(rings.availableFlags & 1 == 1 ? " NO_INTERRUPT" : "")"
          + (hasEvents ? "   used_event \(rings.usedEvent)" : ""))
      add(
        pad(used) + "flags \(rings.usedFlags)\(rings.usedFlags & 1 == 1 ? " NO_NOTIFY" : "")"
          + (hasEvents ? "   avail_event \(rings.availableEvent)" : ""))
    }
    if let doorbells { add("doorbells  kicked \(doorbells.kicks)   called \(doorbells.calls)") }
  }

  /// Draws the first of the slots that were written.
  private mutating func draw(_ packed: PackedPicture) {
    add("packed     calls wanted \(PackedPicture.words(packed.driverWish))")
    add("           kicks wanted \(PackedPicture.words(packed.deviceWish))")
    if !packed.slots.isEmpty { add("") }
    for slot in packed.slots.prefix(Self.packedLimit) {
      add(
        "slot \(slot.number)   \(slot.address) + \(slot.length)   id \(slot.id)   "
          + slot.flagNames.joined(separator: " "))
    }
    let hidden = packed.slots.count - Self.packedLimit
    if hidden > 0 { add("… and \(hidden) more slots that were written") }
  }

  // MARK: Chains

  private mutating func drawUsed(_ picture: QueuePicture) {
    guard !picture.used.isEmpty else { return }
    add("")
    let hidden = picture.used.count - Self.usedLimit
    if hidden > 0 { add("✓ … \(hidden) older used elements") }
    for element in picture.used.suffix(Self.usedLimit) {
      let title = "✓ used #\(element.position)   id \(element.id)   len \(element.length)"
      guard let chain = element.chain else {
        add(title + "   (its descriptors are in use again)")
        continue
      }
      // A driver may reuse used buffers for anything: without a valid status, this is no longer the request.
      let status = chain.lastWritable?.value
      let isAnswered = status.map { $0 <= BlockWords.highestStatus } ?? false
      let words = isAnswered ? BlockWords(chain) : nil
      let answer = status.map { "  →  " + BlockWords.status($0) } ?? ""
      add(title + (words.map { "   " + $0.summary + answer } ?? ""))
      draw(chain, words, isUsed: true)
    }
  }

  private mutating func drawPending(_ picture: QueuePicture, isServed: Bool) {
    guard picture.pendingCount > 0, !picture.pending.isEmpty else { return }
    add("")
    for entry in picture.pending.prefix(Self.pendingLimit) {
      let words = BlockWords(entry.chain)
      let state = isServed ? "▶ available or in flight" : "● available"
      add("\(state) #\(entry.position)   head \(entry.chain.head)" + (words.map { "   " + $0.summary } ?? ""))
      draw(entry.chain, words, isUsed: false)
      for problem in entry.chain.problems { add("  ✗ \(problem)") }
    }
    let hidden = picture.pendingCount - min(picture.pending.count, Self.pendingLimit)
    if hidden > 0 { add("● … and \(hidden) more available") }
  }

  private mutating func draw(_ chain: ChainPicture, _ words: BlockWords?, isUsed: Bool) {
    var roles = Roles(chain, words, isUsed: isUsed)
    draw(chain.descriptors, indent: "  ", &roles)
    guard let last = chain.descriptors.last, last.isIndirect, !chain.indirect.isEmpty else { return }
    add("  ╰▸ table at \(last.address), \(chain.indirectEntries) entries")
    draw(chain.indirect, indent: "     ", &roles)
  }

  private mutating func draw(_ descriptors: [DescriptorPicture], indent: String, _ roles: inout Roles) {
    for (place, descriptor) in descriptors.enumerated() {
      let role = roles.role(of: descriptor)
      guard place < Self.descriptorLimit || place == descriptors.count - 1 else {
        if place == Self.descriptorLimit { add("\(indent)  … \(descriptors.count - 1 - place) more …") }
        continue
      }
      let isFirst = place == 0
      let isLast = place == descriptors.count - 1
      let branch = isFirst ? (isLast ? "──" : "┬─") : (isLast ? "└─" : "├─")
      let direction = descriptor.isIndirect ? "═ table " : descriptor.isWritable ? "← device" : "→ device"
      let index = String(descriptor.index)
      let length = String(descriptor.length)
      add(
        indent + String(repeating: " ", count: max(0, 5 - index.count))
          + "\(index) \(branch) \(Self.hex(descriptor.address))"
          + String(repeating: " ", count: max(1, 11 - length.count)) + "\(length)  \(direction)  \(role)")
    }
  }

  private static func hex(_ address: GuestAddress) -> String {
    let digits = String(address.rawValue, radix: 16)
    let padded = String(repeating: "0", count: max(0, 9 - digits.count)) + digits
    return "0x" + padded + String(repeating: " ", count: max(0, 16 - padded.count))
  }

  /// What each buffer of a block request is for.
  private struct Roles {
    let words: BlockWords?
    let status: (address: GuestAddress, value: UInt8)?
    let isUsed: Bool
    var readableBefore: UInt64 = 0

    init(_ chain: ChainPicture, _ words: BlockWords?, isUsed: Bool) {
      self.words = words
      self.isUsed = isUsed
      status = chain.lastWritable
    }

    mutating func role(of descriptor: DescriptorPicture) -> String {
      guard let words, !descriptor.isIndirect else { return "" }
      guard descriptor.length > 0 else { return "empty" }
      if descriptor.isWritable {
        guard let status, descriptor.address.advanced(by: UInt64(descriptor.length) - 1) == status.address else {
          return "data"
        }
        let answer = isUsed ? "status \(BlockWords.status(status.value))" : "status"
        return descriptor.length == 1 ? answer : "data, \(answer)"
      }
      let before = readableBefore
      readableBefore += UInt64(descriptor.length)
      if before >= 16 { return "data" }
      let header = "header \(words.name)"
      return readableBefore > 16 ? header + ", data" : header
    }
  }
}
