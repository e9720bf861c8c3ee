/// What the device says about segments fits the rings on offer, and a ring in which it does not is said.
import GuestDriver
import Testing
import VirtioCore

@testable import VirtioBlkDevice

@Suite struct SmallRingTests {
  @Test(arguments: [(4, 2), (8, 6), (16, 14), (64, 62), (128, 126), (1024, 126), (32768, 126)] as [(UInt16, UInt32)])
  func theLargestRequestFitsTheLargestRing(offered: UInt16, segments: UInt32) throws {
    var options = RigOptions()
    options.device.maximumQueueSize = offered
    let rig = try Rig(options)
    #expect(rig.client.config.segMax == segments)
  }

  /// A ring of two has no room for a header, data and a status.
  @Test(arguments: [0, 1, 2, 3, 5, 65535] as [UInt16]) func noRingIsSmallerThanARequest(offered: UInt16) throws {
    let scratch = try Scratch()
    var options = BlockDeviceOptions()
    options.maximumQueueSize = offered
    let image = try ImageFile(ImageOptions(path: scratch.image()))
    #expect(throws: EngineError.badQueueSize(Int(offered))) { _ = try BlockDevice(image: image, options: options) }
  }

  @Test(arguments: [(16, false, true), (127, false, true), (128, false, false), (16, true, false), (256, false, false)])
  func aRingThatIsTooSmallIsAWarning(size: UInt16, indirect: Bool, isWarned: Bool) throws {
    var options = RigOptions()
    options.features = indirect ? BlockFeature.understood : BlockFeature.understood.subtracting(.indirectDescriptors)
    let scratch = try Scratch()
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image())))
    let transport = try InProcessTransport(device: device, memory: DriverMemory(size: 8 << 20))
    // A power of two that is not more than what is asked for: a ring has no other size.
    let entries = UInt16(1) << UInt16(15 - size.leadingZeroBitCount)
    let client = try BlockClient(transport, options: DriverOptions(features: options.features, queueSize: entries))
    let notices = device.takeEvents().compactMap { event -> String? in
      guard case .notice(let text) = event else { return nil }
      return text
    }
    #expect(notices.contains { $0.contains("ring of \(entries) entries") && $0.contains("--queue-size-max") } == isWarned)
    try client.shutDown()
  }
}
