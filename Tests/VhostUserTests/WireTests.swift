/// Messages, byte for byte.
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct WireTests {
  @Test func headerIsRequestFlagsSize() {
    let message = Message(.setFeatures, needReply: true, payload: NumberPayload.encode(0x0102_0304_0506_0708))
    #expect(message.bytes == [2, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1])
  }

  @Test func replyFlagsAreExactlyFive() {
    #expect(Message(replyTo: 1, payload: []).bytes == [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test(arguments: [
    (FrontendRequest.getFeatures, UInt32(1)), (.setMemoryTable, 5), (.getVringBase, 11), (.setVringKick, 12),
    (.getProtocolFeatures, 15), (.getQueueCount, 17), (.setVringEnable, 18), (.setBackendRequestDescriptor, 21),
    (.getConfiguration, 24), (.setConfiguration, 25), (.getInflight, 31), (.resetDevice, 34),
    (.getMaximumMemorySlots, 36), (.addMemoryRegion, 37), (.removeMemoryRegion, 38), (.setStatus, 39), (.getStatus, 40),
    (.getVringBaseSkippingDrain, 45),
  ])
  func requestCodes(request: FrontendRequest, code: UInt32) {
    #expect(request.rawValue == code)
  }

  @Test(arguments: [
    (ProtocolFeatures.multiqueue, UInt64(1)), (.replyAck, 1 << 3), (.backendRequests, 1 << 5), (.configuration, 1 << 9),
    (.resetDevice, 1 << 13), (.memorySlots, 1 << 15), (.status, 1 << 16),
  ])
  func protocolFeatureBits(feature: ProtocolFeatures, bits: UInt64) {
    #expect(feature.rawValue == bits)
  }

  @Test func addressHasUsedBeforeAvailable() {
    let address = VringAddress(index: 1, flags: 0, descriptorTable: 0x10, usedRing: 0x20, availableRing: 0x30, log: 0x40)
    let bytes = address.bytes
    #expect(bytes.count == 40)
    #expect(bytes[8] == 0x10 && bytes[16] == 0x20 && bytes[24] == 0x30 && bytes[32] == 0x40)
    #expect(VringAddress(decoding: bytes) == address)
  }

  @Test func memoryTableOfTwo() {
    let table = [
      MemoryRegion(guestAddress: GuestAddress(0), size: 0x1000, userAddress: 0x7000, offset: 0),
      MemoryRegion(guestAddress: GuestAddress(0x1_0000_0000), size: 0x2000, userAddress: 0x9000, offset: 0x1000),
    ]
    let bytes = MemoryRegion.encode(table: table)
    #expect(bytes.count == 8 + 2 * 32)
    #expect(bytes[0..<8] == [2, 0, 0, 0, 0, 0, 0, 0])
    #expect(MemoryRegion.decode(table: bytes) == table)
  }

  @Test func singleRegionHasPaddingFirst() {
    let region = MemoryRegion(guestAddress: GuestAddress(0x1000), size: 1, userAddress: 2, offset: 3)
    #expect(region.singleBytes.count == 40)
    #expect(region.singleBytes[0..<9] == [0, 0, 0, 0, 0, 0, 0, 0, 0])
    #expect(region.singleBytes[9] == 0x10)
    #expect(MemoryRegion(decodingSingle: region.singleBytes) == region)
  }

  @Test func descriptorWord() {
    #expect(VringDescriptorWord(index: 3, hasDescriptor: false).bytes == [3, 1, 0, 0, 0, 0, 0, 0])
    #expect(VringDescriptorWord(decoding: [255, 0, 0, 0, 0, 0, 0, 0]) == .init(index: 255, hasDescriptor: true))
  }

  @Test func configurationMayBeLongerThanItsSize() {
    var bytes = ConfigurationPayload(offset: 32, contents: [1]).bytes
    bytes += [UInt8](repeating: 0, count: 255)
    let payload = ConfigurationPayload(decoding: bytes)
    #expect(payload?.size == 1)
    #expect(payload?.contents.count == 256)
  }

  @Test(arguments: [0, 7]) func numbersThatAreCutAreNoNumbers(count: Int) {
    #expect(NumberPayload.decode([UInt8](repeating: 0, count: count)) == nil)
  }

  @Test func sizesThatLieAreRefused() {
    #expect(VringState(decoding: [0, 0, 0, 0]) == nil)
    #expect(VringAddress(decoding: [UInt8](repeating: 0, count: 39)) == nil)
    // Two regions announced, one present; more regions than descriptors can come; no count at all.
    #expect(MemoryRegion.decode(table: [2, 0, 0, 0] + [UInt8](repeating: 0, count: 36)) == nil)
    #expect(MemoryRegion.decode(table: [254, 0, 0, 0] + [UInt8](repeating: 0, count: 4 + 254 * 32)) == nil)
    #expect(MemoryRegion.decode(table: [255, 255, 255, 255, 0, 0, 0, 0]) == nil)
    #expect(MemoryRegion.decode(table: [0, 0]) == nil)
    // A configuration that claims more bytes than it has.
    #expect(ConfigurationPayload(decoding: [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]) == nil)
    #expect(ConfigurationPayload(decoding: [0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 1]) == nil)
    #expect(ConfigurationPayload(decoding: [0, 0, 0]) == nil)
  }
}
