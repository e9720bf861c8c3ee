/// A whole memory file as a user wants to see it.
public import MemoryFile
public import VirtioCore
internal import VirtioRegisters

/// The file's words and its queues. Every number comes from a copy.
public struct MemoryFilePicture: Sendable {
  public let snapshot: MemoryFileSnapshot
  /// Queues that the driver has described, ready or not.
  public let queues: [QueuePicture]

  public init(_ snapshot: MemoryFileSnapshot) {
    self.snapshot = snapshot
    let zero = GuestAddress(0)
    queues = snapshot.registers.queues.enumerated().compactMap { index, queue in
      let configuration = queue.configuration
      let isDescribed =
        queue.ready
        || [configuration.descriptorTable, configuration.availableRing, configuration.usedRing].contains { $0 != zero }
      guard isDescribed else { return nil }
      return QueuePicture(
        queue: index, configuration: configuration, ready: queue.ready, features: snapshot.registers.driverFeatures,
        memory: snapshot.memory)
    }
  }

  /// The picture as lines of at most 80 columns, except for the path.
  public func draw() -> [String] {
    let layout = snapshot.layout
    let registers = snapshot.registers
    let last = layout.memoryBase.rawValue + (layout.memorySize - 1)
    let device = snapshot.isDeviceThere ? "process \(snapshot.deviceProcess)" : "none"
    var interrupts: [String] = []
    if snapshot.interruptStatus & 1 != 0 { interrupts.append("used buffer") }
    if snapshot.interruptStatus & 2 != 0 { interrupts.append("configuration change") }
    var lines = [
      snapshot.path,
      "  memory      \(ByteSize.describe(layout.memorySize)) at \(layout.memoryBase) … 0x\(String(last, radix: 16))",
      "  room        for \(Self.count(layout.maximumQueues, "queue"))",
    ]
    lines += RegisterPicture.draw(snapshot)
    lines += [
      "  device      \(device)\(snapshot.deviceEpoch > 1 ? ", number \(snapshot.deviceEpoch) on this file" : "")",
      "  driver      \(snapshot.isDriverThere ? "connected" : "none")"
        + (snapshot.isRequestPending ? ", a register access waits for its answer" : ""),
      "  status      \(Self.statusNames(registers.status))",
      "  interrupts  \(interrupts.isEmpty ? "none pending" : interrupts.joined(separator: ", "))",
    ]
    lines += Self.wrapped(label: "  features    ", words: Self.featureNames(registers.driverFeatures))
    for queue in queues {
      lines.append("")
      lines += QueueDrawing.draw(
        queue, isServed: snapshot.isDeviceThere && queue.ready,
        doorbells: snapshot.doorbells.indices.contains(queue.queue) ? snapshot.doorbells[queue.queue] : nil)
    }
    if queues.isEmpty { lines += ["", "  No queue has been set up."] }
    return lines
  }

  /// Names of the bits that are set, numbers for those without a name.
  public static func featureNames(_ features: FeatureSet) -> [String] {
    let names = Dictionary(
      (BlockWords.featureNames + FeatureSet.commonNames).map { ($0.bit, $0.name) }, uniquingKeysWith: { first, _ in first })
    return features.bits.map { names[$0] ?? "bit \($0)" }
  }

  /// Names of the status bits (virtio 2.1); `0 (reset)` when none is set.
  public static func statusNames(_ status: DeviceStatus) -> String {
    let names: [(DeviceStatus, String)] = [
      (.acknowledge, "ACKNOWLEDGE"), (.driver, "DRIVER"), (.featuresOK, "FEATURES_OK"), (.driverOK, "DRIVER_OK"),
      (.suspend, "SUSPEND"), (.needsReset, "DEVICE_NEEDS_RESET"), (.failed, "FAILED"),
    ]
    let set = names.filter { status.contains($0.0) }.map(\.1)
    return set.isEmpty ? "0 (reset)" : set.joined(separator: " ")
  }

  private static func count(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }

  private static func wrapped(label: String, words: [String]) -> [String] {
    var lines = [label]
    for word in words.isEmpty ? ["none accepted"] : words {
      if lines[lines.count - 1].count + word.count > 80 { lines.append(String(repeating: " ", count: label.count)) }
      lines[lines.count - 1] += word + " "
    }
    return lines.map { line in String(line.reversed().drop { $0 == " " }.reversed()) }
  }
}
