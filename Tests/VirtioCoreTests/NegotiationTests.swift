/// Feature negotiation and the device status, step by step.
import Testing
import VirtioCore

@Suite struct NegotiationTests {
  private static let offered: FeatureSet = [.version1, .eventIndex, .indirectDescriptors, FeatureSet(bit: 9)]

  private func write(_ value: UInt8, _ negotiation: inout Negotiation, _ accepts: Bool) -> [Negotiation.Effect] {
    negotiation.writeStatus(value) { _ in accepts }
  }
  private func needReset(_ negotiation: inout Negotiation) -> Bool { negotiation.needReset() }

  private func fresh() -> Negotiation { Negotiation(offered: Self.offered) }

  @Test func offersItsWordsAndNothingBeyond() {
    let negotiation = fresh()
    #expect(negotiation.offeredWord(0) == 1 << 28 | 1 << 29 | 1 << 9)
    #expect(negotiation.offeredWord(1) == 1)
    #expect(negotiation.offeredWord(2) == 0)
    #expect(negotiation.offeredWord(.max) == 0)
  }

  @Test func goesThroughTheStepsOfADriver() {  // i.status.persist.1
    var negotiation = fresh()
    #expect(write(1, &negotiation, true) == [])
    #expect(write(3, &negotiation, true) == [])
    negotiation.acceptWord(0, 1 << 29)
    negotiation.acceptWord(1, 1)
    #expect(write(11, &negotiation, true) == [.featuresFixed([.version1, .eventIndex])])
    #expect(negotiation.status.rawValue == 11)
    #expect(!negotiation.isLive)
    #expect(write(15, &negotiation, true) == [.live])
    #expect(negotiation.isLive)
    #expect(write(0, &negotiation, true) == [.reset])
    #expect(negotiation.status.rawValue == 0)  // status.1
    #expect(negotiation.accepted == [])
  }

  /// feat.3: FEATURES_OK is not kept for a choice that the device cannot support.
  @Test(arguments: [(UInt32(0), UInt32(1) << 3), (1, 1 << 2), (2, 1), (.max, 1 << 31)])
  func refusesWhatWasNotOffered(word: UInt32, bits: UInt32) {
    var negotiation = fresh()
    _ = negotiation.writeStatus(3) { _ in true }
    negotiation.acceptWord(1, 1)
    negotiation.acceptWord(word, word == 1 ? bits | 1 : bits)
    #expect(write(11, &negotiation, true) == [])
    #expect(negotiation.status.rawValue == 3)
    #expect(write(15, &negotiation, true) == [])
    #expect(!negotiation.isLive)
  }

  @Test func refusesWhatTheDeviceCannotDo() {
    var negotiation = fresh()
    negotiation.acceptWord(1, 1)
    #expect(write(11, &negotiation, false) == [])
    #expect(!negotiation.status.contains(.featuresOK))
  }

  @Test func theChoiceIsClosedByFeaturesOK() {
    var negotiation = fresh()
    negotiation.acceptWord(1, 1)
    _ = negotiation.writeStatus(11) { _ in true }
    negotiation.acceptWord(0, 1 << 29)
    #expect(negotiation.accepted == [.version1])
  }

  @Test func aLegacyDriverKnowsNoFeaturesOK() {  // legacy.feat.1
    var negotiation = fresh()
    negotiation.acceptWord(0, 1 << 9)
    #expect(write(7, &negotiation, true) == [.featuresFixed(FeatureSet(bit: 9)), .live])
    var modern = fresh()
    modern.acceptWord(1, 1)
    #expect(write(7, &modern, true) == [])
    #expect(!modern.isLive)
  }

  @Test func needsResetIsTheDevicesOwn() {  // status.4, status.5
    var negotiation = fresh()
    _ = negotiation.writeStatus(0x40 | 3) { _ in true }
    #expect(!negotiation.status.contains(.needsReset))
    #expect(needReset(&negotiation) == false, "no notification before DRIVER_OK")
    #expect(negotiation.status.contains(.needsReset))
    _ = negotiation.writeStatus(0) { _ in true }
    negotiation.acceptWord(1, 1)
    _ = negotiation.writeStatus(15) { _ in true }
    #expect(needReset(&negotiation))
    #expect(needReset(&negotiation) == false, "once is enough")
    #expect(!negotiation.isLive)
    _ = negotiation.writeStatus(15) { _ in true }
    #expect(negotiation.status.contains(.needsReset), "only a reset clears it")
  }

  @Test func aSetThatWasAcceptedIsAcceptedAgain() {  // feat.5
    var negotiation = fresh()
    for _ in 0..<3 {
      negotiation.acceptWord(0, 1 << 28)
      negotiation.acceptWord(1, 1)
      #expect(write(15, &negotiation, true).last == .live)
      _ = negotiation.writeStatus(0) { _ in true }
    }
  }
}
