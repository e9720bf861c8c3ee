/// A device behind an IOMMU over vhost-user: it leaves alone what the front-end has not translated, or has invalidated.
internal import GuestDriver
internal import VhostUser
internal import VirtioCore

extension Check {
  static let translation: [Check] = [
    Check(
      "untranslated-waits", "vu.iommu.1", "An address that is not translated is asked for, and not touched before it is.",
      needs: [.vhostUser, .offered(.accessPlatform)]
    ) { bench in
      try bench.start(Plan(adding: .accessPlatform, queues: 1))
      let transport = try bench.translated()
      let data = try bench.good(bench.read(0)).data
      for _ in 0..<3 {
        let page = try bench.page()
        page.fill(0x44)
        transport.withholdTranslation(of: page.address)
        var posted = try bench.make(bench.read(0))
        posted.chain[1].address = page.address.rawValue
        bench.post(&posted)
        try expect(
          try bench.eventually { transport.hasAskedForTranslation(of: page.address) },
          "the request needs a translation, and the back-end requests none")
        bench.settle()
        try expect(
          posted.status == Posted.poison && page.bytes.allSatisfy { $0 == 0x44 },
          "a request was executed whose data is not translated")
        try transport.releaseTranslation(of: page.address)
        try expect(try bench.answer(posted).isOK, "the request failed when its data was translated")
        try expect(page.bytes(0..<data.count) == data, "what was read is not where the translation says")
      }
      return .kept()
    },
    Check(
      "taken-back-is-left-alone", "vu.iommu.2",
      "A translation is not used any more when the back-end has acknowledged that it was taken back.",
      needs: [.vhostUser, .offered(.accessPlatform)]
    ) { bench in
      try bench.start(Plan(adding: .accessPlatform, queues: 1))
      let transport = try bench.translated()
      let data = try bench.good(bench.read(0)).data
      let (page, other) = (try bench.page(), try bench.page())
      for round in 0..<10 {
        var posted = try bench.make(bench.read(0))
        posted.chain[1].address = page.address.rawValue
        try transport.moveTranslation(of: page.address, to: page.address)
        bench.post(&posted)
        // In every other round, the request may be in flight.
        if round % 2 == 0 { _ = try bench.answer(posted) }
        try transport.moveTranslation(of: page.address, to: other.address)
        page.fill(0x44)
        if round % 2 == 1 { _ = try bench.answer(posted) }
        try expect(posted.status == 0, "a request whose translation was taken back failed")
        var again = try bench.make(bench.read(0))
        again.chain[1].address = page.address.rawValue
        other.fill(0x55)
        bench.post(&again)
        try expect(try bench.answer(again).isOK, "a request failed after a translation had been replaced")
        try expect(
          page.bytes.allSatisfy { $0 == 0x44 },
          "round \(round): memory was written to by a translation that had been taken back")
        try expect(other.bytes(0..<data.count) == data, "round \(round): what was read is not where the new translation says")
      }
      return .kept()
    },
  ]
}

extension Bench {
  /// The transport of a driver whose addresses are translated.
  fileprivate func translated() throws -> VhostUserTransport {
    guard let transport = try transport() as? VhostUserTransport else { throw Trouble.notApplicable("only over vhost-user") }
    try needTranslation()
    return transport
  }

  /// A driver behind an IOMMU needs a translator. With registers, that does not concern the driver.
  func needTranslation() throws {
    guard let transport = try transport() as? VhostUserTransport else { return }
    guard transport.protocolFeatures.contains(.backendRequests) else {
      throw Trouble.notApplicable("without BACKEND_REQ a back-end can ask for no translation")
    }
  }

  /// Separate pages for a block.
  fileprivate func page() throws -> GuestBuffer {
    try memory().allocate((block + 4095) / 4096 * 4096, alignment: 4096)
  }
}
