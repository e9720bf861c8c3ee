/// The segment limit that the device reports fits the largest ring on offer; a smaller ring that does not fit causes a warning.
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

  @Test(arguments: [(16, false, true), (64, false, true), (128, false, false), (16, true, false), (256, false, false)])
  func aRingThatIsTooSmallIsAWarning(size: UInt16, indirect: Bool, isWarned: Bool) throws {
    let scratch = try Scratch()
    let device = try BlockDevice(image: ImageFile(ImageOptions(path: scratch.image())))
    let features = indirect ? BlockFeature.understood : BlockFeature.understood.subtracting(.indirectDescriptors)
    let queue = try HandQueue(device, 0, SharedMemory(), size: size, features: features)
    let warning = SmallRing.warning(queue.activation, segments: BlockDeviceOptions.maximumSegments)
    #expect((warning != nil) == isWarned)
    guard let warning else { return }
    #expect(warning.contains("a ring of \(size) entries") && warning.contains("--queue-size-max \(size)"))
  }
}
