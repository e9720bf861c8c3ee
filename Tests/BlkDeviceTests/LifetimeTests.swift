/// GET_LIFETIME (virtio 5.2.6): what the kernel reports about a device, and nothing that the specification does not define.
import Foundation
import GuestDriver
import Testing

@testable import VirtioBlkDevice

@Suite struct LifetimeTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var files: [String: String]
    /// `nil`: it is not offered.
    var expected: [UInt8]?
    var testDescription: String { files.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: " ") }
  }

  private static let ufs = "health_descriptor/"
  static let cases: [Case] = [
    Case(files: ["device/life_time": "0x01 0x0b\n", "device/pre_eol_info": "0x02\n"], expected: [2, 0, 1, 0, 11, 0]),
    Case(files: ["device/life_time": "0x03 0x00\n"], expected: [0, 0, 3, 0, 0, 0]),
    // Reserved values are not reported.
    Case(files: ["device/life_time": "0x0c 0x0a\n", "device/pre_eol_info": "0x04\n"], expected: [0, 0, 0, 0, 10, 0]),
    Case(files: ["device/life_time": "0x00 0x00\n", "device/pre_eol_info": "0x00\n"], expected: nil),
    Case(files: ["device/life_time": "no number\n"], expected: nil),
    Case(files: ["device/life_time": ""], expected: nil),
    Case(files: ["device/model": "QEMU\n"], expected: nil),
    Case(
      files: [
        ufs + "life_time_estimation_a": "0x05\n", ufs + "life_time_estimation_b": "0x06\n", ufs + "eol_info": "0x01\n",
        "host/target/unit/model": "x\n",
      ], expected: [1, 0, 5, 0, 6, 0]),
  ]

  /// As the kernel lays it out: for a UFS device, `device` is a link to a unit three folders below its controller.
  private static func make(_ files: [String: String], in folder: String) throws {
    for (name, text) in files {
      let path = folder + "/" + name
      try FileManager.default.createDirectory(
        atPath: String(path[..<path.lastIndex(of: "/")!]), withIntermediateDirectories: true)
      try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    }
    if files.keys.contains(where: { $0.hasPrefix("host/") }) {
      try FileManager.default.createSymbolicLink(atPath: folder + "/device", withDestinationPath: "host/target/unit")
    }
  }

  private static func rig(_ scratch: Scratch, _ folder: String) throws -> (device: BlockDevice, client: BlockClient) {
    var options = ImageOptions(path: try scratch.image(size: 1 << 20))
    options.systemFolder = folder
    let device = try BlockDevice(image: ImageFile(options))
    let transport = try InProcessTransport(device: device, memory: DriverMemory(size: 8 << 20))
    return (device, try BlockClient(transport, options: DriverOptions(features: BlockFeature.understood)))
  }

  @Test(arguments: cases) func whatIsToldIsPassedOn(_ one: Case) throws {
    let scratch = try Scratch()
    let folder = scratch.path + "/sys"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try Self.make(one.files, in: folder)
    let (device, client) = try Self.rig(scratch, folder)
    #expect(device.features.contains(.blockLifetime) == (one.expected != nil))
    let outcome = try client.perform(.lifetime)
    if let expected = one.expected {
      #expect(outcome.status == .ok && outcome.answer == expected && outcome.length == 7)
      // A shorter buffer is an error, and of a larger one only the answer is written.
      #expect(try client.perform(BlockRequest(type: .getLifetime, answerBytes: 5)).status == .ioError)
      let larger = try client.perform(BlockRequest(type: .getLifetime, answerBytes: 16))
      #expect(larger.status == .ok && Array(larger.answer[..<6]) == expected && larger.length == 6)
    } else {
      #expect(outcome.status == .unsupported)
    }
    try client.shutDown()
  }

  /// The values are read for each request.
  @Test func whatChangesIsSeen() throws {
    let scratch = try Scratch()
    let folder = scratch.path + "/sys"
    try Self.make(["device/life_time": "0x01 0x01\n"], in: folder)
    let (_, client) = try Self.rig(scratch, folder)
    #expect(try client.lifetime() == [0, 1, 1])
    let file = try FileHandle(forWritingTo: URL(fileURLWithPath: folder + "/device/life_time"))
    try file.write(contentsOf: Data("0x02 0x03\n".utf8))
    #expect(try client.lifetime() == [0, 2, 3])
    try file.truncate(atOffset: 0)
    #expect(try client.perform(.lifetime).status == .ioError)
    try client.shutDown()
  }

  @Test func anImageOnAnOrdinaryDeviceOffersNothing() throws {
    #expect(try !Rig().device.features.contains(.blockLifetime))
  }
}
