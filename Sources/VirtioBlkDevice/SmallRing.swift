/// Rings that are too small for the device's SEG_MAX.
internal import VirtioCore

/// SEG_MAX is one number for all queues, reported before any of them is set up (virtio 5.2.4); the driver or the front-end
/// chooses the size of a ring afterwards. A request with SEG_MAX segments also has a header and a status, and without indirect
/// descriptors each takes an entry of the ring. A driver that relies on SEG_MAX waits for that many free entries, and in a
/// smaller ring it waits forever (Linux does).
enum SmallRing {
  /// - Parameters:
  ///   - activation: that of a queue that is about to start.
  ///   - segments: SEG_MAX.
  /// - Returns: one sentence for the operator; `nil` if the largest request fits.
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
