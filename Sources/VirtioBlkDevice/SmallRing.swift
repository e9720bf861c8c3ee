/// Rings that are too small for what the device says of itself.
internal import VirtioCore

/// SEG_MAX is one number for all queues, said before any of them is set up (virtio 5.2.4), and the size of a ring is a
/// driver's or a front-end's choice, made after it. A request with as many segments as SEG_MAX allows has a header and a status,
/// too; without indirect descriptors each takes a place in the ring. A driver that believes SEG_MAX waits for so many free
/// places, and in a smaller ring waits for good (Linux does).
enum SmallRing {
  /// - Parameters:
  ///   - activation: of a queue that is about to start.
  ///   - segments: SEG_MAX.
  /// - Returns: one sentence for the operator; `nil` where the largest request fits.
  static func warning(_ activation: Activation, segments: Int) -> String? {
    let size = Int(activation.configuration.size)
    guard size < segments + 2, !activation.features.contains(.indirectDescriptors) else { return nil }
    return """
      queue \(activation.queue) has a ring of \(size) entries and the driver uses no indirect descriptors, so a request of \
      \(segments) segments, which the disk allows, never fits and the guest may hang: use a ring of \(segments + 2) \
      entries or more, or serve the disk with --queue-size-max \(max(size, 4))
      """
  }
}
