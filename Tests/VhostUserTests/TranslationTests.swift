/// ACCESS_PLATFORM in the protocol: what is requested and when, what an answer starts, and what is withdrawn.
import Glibc
import TestSupport
import Testing
import VirtioCore

@testable import VhostUser

@Suite struct TranslationSessionTests {
  static let formats: [FeatureSet] = [[.version1, .accessPlatform], [.version1, .accessPlatform, .packedRing]]
  /// The driver's address of the beginning of the front-end's memory.
  static let base: UInt64 = 0xffff_0000_0000
  private static let ok = NumberPayload.encode(0)
  private static let failure = NumberPayload.encode(1)

  static func update(
    _ address: UInt64, _ size: UInt64 = 4096, user: UInt64? = nil, permission: UInt8 = 3, type: UInt8 = 2
  ) -> [UInt8] {
    TranslationMessage(
      address: address, size: size, userAddress: user ?? Rig.userBase &+ (address &- base), permission: permission, type: type
    ).bytes
  }

  static func invalidate(_ address: UInt64, _ size: UInt64) -> [UInt8] {
    TranslationMessage(address: address, size: size, type: 3).bytes
  }

  /// Sets everything up until the rings lack only translations.
  private static func rig(_ features: FeatureSet, queues: Int = 1, hasChannel: Bool = true) -> Rig {
    var rig = Rig(queues: queues, features: features)
    rig.send(.setOwner)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    if hasChannel { rig.send(.setBackendRequestDescriptor, [], [socketPair().0]) }
    rig.send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue))
    rig.setMemory()
    for queue in 0..<queues {
      let index = UInt32(queue)
      rig.send(.setVringSize, Rig.state(index, 128))
      rig.send(.setVringAddress, Rig.address(index, base: base).bytes)
      rig.send(.setVringError, Rig.word(UInt8(queue)), [eventCounter()])
      rig.send(.setVringKick, Rig.word(UInt8(queue)), [eventCounter()])
      rig.send(.setVringEnable, Rig.state(index, 1))
    }
    _ = rig.takeReplies()
    return rig
  }

  private static func started(_ features: FeatureSet, queues: Int = 1) -> Rig {
    var rig = rig(features, queues: queues)
    for queue in 0..<queues { rig.send(.iotlb, update(base + UInt64(queue) * 0x1_0000, 0x1_0000)) }
    _ = rig.takeReplies()
    _ = rig.takeDeeds()
    return rig
  }

  // MARK: Starting

  /// A ring requests one part after the other, each once, and starts with the last answer.
  @Test(arguments: formats) func aRingIsTranslatedBeforeItStarts(features: FeatureSet) throws {
    var rig = Self.rig(features)
    let access: MemoryAccess = features.contains(.packedRing) ? [.read, .write] : .read
    #expect(rig.questions == [TranslationMiss(address: Self.base, access: access)])
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.questions.count == 1)
    for offset in [0, 0x4000, 0x8000] as [UInt64] {
      #expect(rig.activations.isEmpty)
      rig.send(.iotlb, Self.update(Self.base + offset))
    }
    #expect(rig.takeReplies().map(\.payload) == [Self.ok, Self.ok, Self.ok])
    #expect(rig.questions.map(\.address) == [0, 0x4000, 0x8000].map { Self.base + $0 })
    let activation = try #require(rig.activations.first)
    #expect(activation.configuration.descriptorTable == GuestAddress(Self.base))
    #expect(activation.memory.lookup?.translations.count == 3)
    #expect(activation.memory.regions.count == 1)
  }

  /// The reply precedes the start: the front-end waits for the reply and for nothing else.
  @Test func theAnswerIsAcknowledgedFirst() {
    var rig = Self.rig(Self.formats[0])
    rig.session.receive(Message(.iotlb, needReply: false, payload: Self.update(Self.base, 0x1_0000), descriptors: []))
    guard case .reply = rig.session.nextEffect() else {
      Issue.record("something comes before the reply")
      return
    }
    rig.run()
    #expect(rig.activations.count == 1)
  }

  /// Without a channel nothing is requested; when a channel is set, or replaced, all missing translations are requested.
  @Test func aChannelThatComesLaterIsAsked() {
    var rig = Self.rig(Self.formats[0], queues: 2, hasChannel: false)
    #expect(rig.questions.isEmpty)
    for _ in 0..<2 {
      rig.questions = []
      rig.send(.setBackendRequestDescriptor, [], [socketPair().0])
      #expect(rig.questions.map(\.address) == [Self.base, Self.base + 0x1_0000])
    }
  }

  /// An answer whose permissions do not suffice starts no ring and is reported once; a later sufficient one does start it.
  @Test func aRingThatMayNotBeWrittenDoesNotStart() {
    var rig = Self.rig(Self.formats[0])
    rig.send(.iotlb, Self.update(Self.base, 0x1_0000, permission: 1))
    // Its used ring has to be written.
    #expect(rig.questions.last == TranslationMiss(address: Self.base + 0x8000, access: [.read, .write]))
    _ = rig.takeDeeds()
    // The first answer may not have been for this request.
    rig.send(.iotlb, Self.update(Self.base + 0x8000, permission: 1))
    #expect(rig.takeDeeds().isEmpty && rig.questions.last?.address == Self.base + 0x8000)
    rig.send(.iotlb, Self.update(Self.base + 0x8000, permission: 1))
    #expect(rig.takeDeeds() == ["signal", "cannot start 0"])
    rig.send(.iotlb, Self.update(Self.base + 0x8000, permission: 3))
    #expect(rig.activations.isEmpty, "nothing was requested")
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.activations.count == 1)
  }

  /// A ring has to be contiguous; a scattered one is reported.
  @Test(arguments: formats) func aScatteredRingDoesNotStart(features: FeatureSet) {
    var rig = Rig(queues: 1, features: features)
    rig.send(.setProtocolFeatures, Rig.number(ProtocolFeatures.served.rawValue))
    rig.send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue))
    rig.setMemory()
    rig.send(.iotlb, Self.update(Self.base))
    rig.send(.iotlb, Self.update(Self.base + 4096, user: Rig.userBase + 0x2_0000))
    rig.send(.iotlb, Self.update(Self.base + 0x4000, 0xc000))
    rig.send(.setVringSize, Rig.state(0, 512))
    rig.send(.setVringAddress, Rig.address(0, base: Self.base).bytes)
    rig.send(.setVringError, Rig.word(0), [eventCounter()])
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    _ = rig.takeDeeds()
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.takeDeeds() == ["signal", "cannot start 0"])
    // With contiguous translations it starts.
    rig.send(.iotlb, Self.update(Self.base + 4096))
    rig.send(.setVringEnable, Rig.state(0, 1))
    #expect(rig.activations.count == 1)
  }

  /// A ring that is stopped, reset or disabled waits for nothing.
  @Test(arguments: ["base", "reset", "status", "disable"]) func aRingThatWaitsCanBeStopped(how: String) {
    var rig = Self.rig(Self.formats[0])
    switch how {
    case "base": rig.send(.getVringBase, Rig.state(0, 0))
    case "reset": rig.send(.resetDevice)
    case "status": rig.send(.setStatus, Rig.number(0))
    default: rig.send(.setVringEnable, Rig.state(0, 0))
    }
    rig.send(.iotlb, Self.update(Self.base, 0x1_0000))
    #expect(rig.activations.isEmpty)
  }

  // MARK: Invalid messages

  /// Refused, reported, and without effect.
  @Test(
    arguments: [
      ("size 0", Self.update(base, 0)), ("wraps", Self.update(.max - 100, 4096, user: Rig.userBase)),
      ("user wraps", Self.update(base, 4096, user: .max - 100)), ("no permission", Self.update(base, permission: 0)),
      ("unknown permission", Self.update(base, permission: 4)), ("all permissions", Self.update(base, permission: 255)),
      ("outside", Self.update(base, user: 0x1000)), ("too long", Self.update(base, Rig.memorySize + 1, user: Rig.userBase)),
      ("everything", Self.update(0, .max, user: Rig.userBase)), ("a miss", Self.update(base, type: 1)),
      ("a failure", Self.update(base, type: 4)), ("no type", Self.update(base, type: 0)),
      ("unknown type", Self.update(base, type: 77)), ("short", Array(Self.update(base).prefix(25))), ("empty", []),
    ] as [(String, [UInt8])])
  func whatCannotBeIsRefused(name: String, payload: [UInt8]) {
    var rig = Self.rig(Self.formats[0])
    let questions = rig.questions
    rig.send(.iotlb, payload)
    #expect(rig.takeReplies().map(\.payload) == [Self.failure])
    #expect(rig.session.translations.entries.isEmpty && rig.activations.isEmpty && rig.questions == questions)
    rig.send(.iotlb, Self.update(Self.base, 0x1_0000))
    #expect(rig.takeReplies().map(\.payload) == [Self.ok] && rig.activations.count == 1)
  }

  /// For a driver without ACCESS_PLATFORM nothing is translated.
  @Test func withoutTheFeatureThereIsNoTranslation() {
    var rig = Rig()
    rig.bringUp()
    _ = rig.takeReplies()
    rig.send(.iotlb, Self.update(0))
    #expect(rig.takeReplies().map(\.payload) == [Self.failure])
    #expect(rig.activations.allSatisfy { $0.memory.lookup == nil })
  }

  /// However many translations there are, the table stays within its capacity.
  @Test func theTableIsBounded() {
    let capacity = 200
    var table = TranslationTable(capacity: capacity)
    for page in 0..<UInt64(capacity * 3) {
      table.insert(.init(first: page * 8192, last: page * 8192 + 4095, user: page << 20, access: .read))
      if table.entries.count > capacity { Issue.record("\(table.entries.count) entries") }
    }
    #expect(table.losses == UInt64(capacity * 2) && table.replacements == 0)
    // The newest are there.
    #expect(table.entries.first?.first == UInt64(capacity * 2) * 8192)
    table.remove(first: 0, last: .max)
    #expect(table.entries.isEmpty)
    // Removals from the middle do not make it grow, either.
    table.insert(.init(first: 0, last: .max, user: 0, access: .read))
    for page in 0..<UInt64(capacity * 2) {
      table.remove(first: page * 8192, last: page * 8192 + 4095)
      if table.entries.count > capacity { Issue.record("\(table.entries.count) entries") }
    }
  }

  /// Compared with a model that has one entry for each of a few addresses.
  @Test(arguments: 1...12) func theTableIsRight(seed: Int) {
    var random = SystemRandom(seed: UInt64(seed))
    var table = TranslationTable(queues: 1)
    var model: [UInt64: (user: UInt64, access: MemoryAccess)] = [:]
    let top = UInt64.max - 63
    for _ in 0..<200 {
      let low = (random.next() % 2 == 0 ? 0 : top) + random.next() % 64
      let last = low + min(random.next() % 16, 63 - low % 64)
      if random.next() % 3 == 0 {
        table.remove(first: low, last: last)
        for address in low...last { model[address] = nil }
      } else {
        let (user, access) = (low &+ (random.next() % 2) * 1000, MemoryAccess(rawValue: UInt8(1 + random.next() % 3)))
        table.insert(.init(first: low, last: last, user: user, access: access))
        for address in low...last {
          let place = user &+ (address - low)
          let before = model[address].map { $0.user == place ? $0.access : [] } ?? []
          model[address] = (place, access.union(before))
        }
      }
      let isSorted = zip(table.entries, table.entries.dropFirst()).allSatisfy { $0.last < $1.first }
      let wrong = (Array(0..<64) + Array(top...UInt64.max)).first { address in
        let entry = table.entries.first { $0.first <= address && address <= $0.last }
        return entry?.user(of: address) != model[address]?.user || entry?.access != model[address]?.access
      }
      #expect(isSorted && wrong == nil)
    }
  }

  /// A translation that spans several regions is split, and the parts that are in no region are left out.
  @Test func translationsGoOverRegions() throws {
    var rig = Rig(features: Self.formats[0])
    rig.send(.setFeatures, Rig.number(Self.formats[0].union(.protocolFeatures).rawValue))
    let half = Rig.memorySize / 2
    rig.setMemory([
      Rig.region(0, size: half), Rig.region(1 << 32, size: half, user: Rig.userBase + half, offset: Rig.memorySize),
    ])
    rig.send(.iotlb, Self.update(Self.base, Rig.memorySize))
    #expect(rig.takeReplies().map(\.payload) == [Self.ok])
    let both = rig.session.currentTranslations()
    #expect(both.count == 2)
    #expect(both.firstMiss(Self.base, count: Rig.memorySize, for: .write) == nil)
    // Without the second region half of it is gone.
    rig.setMemory([Rig.region(0, size: half)])
    let one = rig.session.currentTranslations()
    #expect(one.firstMiss(Self.base, count: Rig.memorySize, for: .write)?.address == Self.base + half)
  }

  // MARK: Running

  /// A queue's miss is answered from the table, or requested once.
  @Test(arguments: formats) func aQueueIsAnsweredFromTheTable(features: FeatureSet) {
    var rig = Self.started(features, queues: 2)
    rig.questions = []
    let known = TranslationMiss(address: Self.base + 0x1_0000, access: .write)
    #expect(rig.words(rig.session.missed(queue: 0, known)) == ["translate 0"])
    let miss = TranslationMiss(address: Self.base + 0x5_0123, access: .write)
    #expect(rig.words(rig.session.missed(queue: 0, miss)) == ["ask \(miss.address)"])
    #expect(rig.words(rig.session.missed(queue: 0, miss)).isEmpty)
    #expect(rig.words(rig.session.missed(queue: 1, miss)) == ["ask \(miss.address)"])
    rig.send(.iotlb, Self.update(Self.base + 0x6_0000))
    #expect(rig.takeDeeds().isEmpty, "another page does not answer it")
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000))
    #expect(rig.takeDeeds() == ["translate 0", "translate 1"])
    #expect(rig.words(rig.session.missed(queue: 7, miss)).isEmpty && rig.words(rig.session.missed(queue: -1, miss)).isEmpty)
  }

  /// A stopped queue waits for nothing.
  @Test func anAnswerAfterTheStopIsNobodys() {
    var rig = Self.started(Self.formats[0])
    _ = rig.session.missed(queue: 0, TranslationMiss(address: Self.base + 0x5_0000, access: .read))
    rig.send(.getVringBase, Rig.state(0, 0))
    _ = rig.takeDeeds()
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000))
    #expect(rig.takeDeeds().isEmpty)
  }

  /// The next driver's addresses mean something else, and no message says so: its firmware used the same ones.
  @Test(arguments: formats, ["base", "features", "status"]) func theNextDriverIsTranslatedAnew(
    features: FeatureSet, how: String
  ) {
    var rig = Self.started(features, queues: 2)
    rig.send(.getVringBase, Rig.state(0, 0))
    #expect(!rig.session.translations.entries.isEmpty, "another ring is started")
    if how == "features" {
      // A front-end that stops rings in another way sends the features again before it starts them.
      rig.send(.setStatus, Rig.number(0))
      rig.send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue))
    } else if how == "status" {
      rig.send(.setStatus, Rig.number(0))
    } else {
      rig.send(.getVringBase, Rig.state(1, 0))
    }
    #expect(rig.session.translations.entries.isEmpty)
    rig.questions = []
    rig.send(.setVringKick, Rig.word(0), [eventCounter()])
    #expect(rig.questions.count == 1)
  }

  /// Queues are told of replaced translations that they may use.
  @Test func whatIsReplacedIsTold() {
    var rig = Self.started(Self.formats[0], queues: 2)
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000))
    #expect(rig.takeDeeds().isEmpty)
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000, user: Rig.userBase))
    #expect(rig.takeDeeds() == ["translate 0", "translate 1"])
  }

  /// Queues release withdrawn translations, and the reply is sent when they have.
  @Test(arguments: formats) func whatIsTakenBackIsGivenBackFirst(features: FeatureSet) throws {
    var rig = Self.started(features, queues: 2)
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000))
    rig.holdsWithdrawals = true
    _ = rig.takeReplies()
    _ = rig.takeDeeds()
    rig.send(.iotlb, Self.invalidate(Self.base + 0x5_0000, 4096))
    #expect(rig.takeDeeds() == ["withdraw from 0, 1"] && rig.takeReplies().isEmpty)
    let left = try #require(rig.withdrawal)
    #expect(left.remaining.find(Self.base + 0x5_0000) == nil && left.remaining.find(Self.base) != nil)
    rig.holdsWithdrawals = false
    rig.session.withdrawn()
    rig.run()
    #expect(rig.takeReplies().map(\.payload) == [Self.ok])
  }

  /// A ring whose own translation is withdrawn stops, and starts at its position when it is translated again; the others go on.
  @Test(
    arguments: formats,
    [(base, 16), (base + 0x8000, 4096), (base - 0x1000, 0x1001), (base + 0x4003, 1)] as [(UInt64, UInt64)])
  func aRingThatIsTakenBackStartsAnew(features: FeatureSet, range: (first: UInt64, size: UInt64)) {
    var rig = Self.started(features, queues: 2)
    rig.questions = []
    rig.send(.iotlb, Self.invalidate(range.first, range.size))
    #expect(rig.takeDeeds() == ["withdraw from 1", "stop 0"])
    #expect(rig.takeReplies().map(\.payload) == [Self.ok])
    #expect(rig.questions.count == 1)
    rig.send(.iotlb, Self.update(Self.base, 0x1_0000))
    #expect(rig.takeDeeds() == ["start 0 at 5"])
  }

  /// All translations, in the two ways of expressing that.
  @Test(arguments: [(0, 0), (0, UInt64.max), (1, .max)] as [(UInt64, UInt64)]) func everythingIsTakenBack(
    range: (first: UInt64, size: UInt64)
  ) {
    var rig = Self.started(Self.formats[0], queues: 2)
    rig.send(.iotlb, Self.invalidate(range.first, range.size))
    #expect(rig.takeDeeds() == ["stop 0", "stop 1"])
    #expect(rig.session.translations.entries.isEmpty && rig.takeReplies().map(\.payload) == [Self.ok])
  }

  // MARK: Another server

  /// The front-end's translations are handed over, and invalid ones are ignored.
  @Test(arguments: formats) func theNextServerKnowsTheTranslations(features: FeatureSet) throws {
    let rig = Self.started(features, queues: 2)
    var list = DescriptorList()
    var state = ConnectionState(
      socket: 0, unread: nil, unsent: [], channel: nil, protocolFeatures: 0, features: nil, status: 0, memory: [], log: nil,
      logsBuffers: false, inflight: nil, owesConfigurationChange: false, rings: [])
    rig.session.fill(&state, &list, running: [0, 1])
    func restore(_ state: ConnectionState) throws -> BackendSession {
      try SessionRestoration(state: state, list: list, device: rig.session.device, table: MemoryTable()).carryOut()
    }
    var next = try restore(state)
    #expect(next.translations.entries == rig.session.translations.entries)
    #expect(next.untranslated(0) == nil)
    #expect(try next.activation(of: 1)?.memory.lookup != nil)
    // A server that has forgotten them requests them again.
    state.translations = []
    next = try restore(state)
    next.hasChannel = true
    #expect(next.untranslated(0) != nil)
    next.goOn(with: [0])
    guard case .send(let message)? = next.nextEffect() else {
      Issue.record("nothing was requested")
      return
    }
    #expect(message.request == BackendRequest.translation.rawValue)
    for wrong: ConnectionState.Translation in [
      .init(first: 2, last: 1, userAddress: Rig.userBase, permission: 3),
      .init(first: 0, last: .max, userAddress: Rig.userBase, permission: 3),
      .init(first: 0, last: 1, userAddress: Rig.userBase, permission: 9),
      .init(first: 0, last: 1, userAddress: .max, permission: 1),
    ] {
      state.translations = [wrong]
      #expect(throws: TakeoverError.self) { _ = try restore(state) }
    }
    // A translation outside memory is ignored, too.
    state.translations = [.init(first: 0, last: 1, userAddress: 0, permission: 3)]
    #expect(try restore(state).translations.entries.isEmpty)
  }

  /// Memory is removed that some translations still refer to: the next server ignores those.
  @Test(arguments: formats) func whatIsNotInMemoryAnyMoreGoesNotAlong(features: FeatureSet) throws {
    var rig = Rig(features: features)
    rig.send(.setFeatures, Rig.number(features.union(.protocolFeatures).rawValue))
    let half = Rig.memorySize / 2
    rig.setMemory([
      Rig.region(0, size: half), Rig.region(1 << 32, size: half, user: Rig.userBase + half, offset: Rig.memorySize),
    ])
    rig.send(.iotlb, Self.update(Self.base, 4096))
    rig.send(.iotlb, Self.update(Self.base + half, 4096))
    rig.setMemory([Rig.region(0, size: half)])
    #expect(rig.session.translations.entries.count == 2)
    var list = DescriptorList()
    var state = ConnectionState(
      socket: 0, unread: nil, unsent: [], channel: nil, protocolFeatures: 0, features: nil, status: 0, memory: [], log: nil,
      logsBuffers: false, inflight: nil, owesConfigurationChange: false, rings: [])
    rig.session.fill(&state, &list, running: [])
    let next = try SessionRestoration(state: state, list: list, device: rig.session.device, table: MemoryTable()).carryOut()
    #expect(next.translations.entries.map(\.first) == [Self.base])
  }

  // MARK: Matching answers to requests

  /// Two queues request one page, one to read and one to write: the answer to one does not refuse the other.
  @Test(arguments: formats) func anAnswerToOneRefusesNothingToTheOther(features: FeatureSet) {
    var rig = Self.started(features, queues: 2)
    let address = Self.base + 0x5_0000
    _ = rig.session.missed(queue: 0, TranslationMiss(address: address, access: .read))
    _ = rig.session.missed(queue: 1, TranslationMiss(address: address + 8, access: .write))
    rig.send(.iotlb, Self.update(address, permission: 1))
    #expect(rig.takeDeeds() == ["translate 0"])
    rig.send(.iotlb, Self.update(address, permission: 2))
    #expect(rig.takeDeeds() == ["translate 1"])
    #expect(rig.session.currentTranslations().find(address)?.access == [.read, .write])
  }

  /// A request that is answered again and again, but never granted, is refused in the end.
  @Test(arguments: formats) func whatIsNeverAllowedIsRefused(features: FeatureSet) {
    var rig = Self.started(features, queues: 3)
    let address = Self.base + 0x5_0000
    rig.questions = []
    _ = rig.session.missed(queue: 1, TranslationMiss(address: address, access: .write))
    for _ in 0..<3 {
      rig.send(.iotlb, Self.update(address, permission: 1))
      #expect(rig.takeDeeds().isEmpty)
    }
    #expect(rig.questions.count == 3)
    rig.send(.iotlb, Self.update(address, permission: 1))
    #expect(rig.takeDeeds() == ["refuse 1"])
    rig.send(.iotlb, Self.update(address, permission: 1))
    #expect(rig.takeDeeds().isEmpty)
  }

  /// A refusal from before a stop does not apply to later requests.
  @Test(arguments: ["disable", "address", "base"]) func anOldRefusalIsForgotten(how: String) {
    var rig = Self.rig(Self.formats[0])
    rig.send(.iotlb, Self.update(Self.base + 0x4000, 0xc000))
    rig.send(.iotlb, Self.update(Self.base, permission: 2))
    switch how {
    case "disable": rig.send(.setVringEnable, Rig.state(0, 0))
    case "address": rig.send(.setVringAddress, Rig.address(0, base: Self.base).bytes)
    default: rig.send(.getVringBase, Rig.state(0, 0))
    }
    if how == "base" {
      rig.send(.setVringKick, Rig.word(0), [eventCounter()])
      rig.send(.iotlb, Self.update(Self.base + 0x4000, 0xc000))
    }
    rig.send(.setVringEnable, Rig.state(0, 1))
    _ = rig.takeDeeds()
    rig.send(.iotlb, Self.update(Self.base, permission: 2))
    #expect(rig.takeDeeds().isEmpty, "it is requested once more before it is refused")
    rig.send(.iotlb, Self.update(Self.base, permission: 3))
    #expect(rig.takeDeeds().contains("start 0 at 0"))
  }

  // MARK: A full table

  /// Each of many queues has a request whose pages need most of the table's capacity, and all complete.
  @Test func manyLargeRequestsComeToTheirEnd() {
    // A request has at most 1024 pieces, and a ring a few pages.
    #expect(TranslationTable(queues: 16).capacity >= 2 * 16 * 1100 && TranslationTable(queues: 1).capacity >= 4096)
    // The same on a small scale.
    let (queues, pages) = (16, 64)
    var table = TranslationTable(capacity: 2 * queues * pages)
    // Filled with translations that nothing needs.
    for page in 0..<UInt64(table.capacity) {
      table.insert(.init(first: page * 8192, last: page * 8192 + 4095, user: page << 20, access: .read))
    }
    var done = 0
    var needed = (0..<queues).map { queue in (0..<pages).map { UInt64(1) << 40 + UInt64(queue * pages + $0) * 8192 } }
    var rounds = 0
    while done < queues, rounds < 3 * queues * pages {
      for queue in needed.indices where !needed[queue].isEmpty {
        rounds += 1
        // The walk of the chain begins at its first page each time.
        guard let missing = needed[queue].first(where: { !table.holds($0) }) else {
          needed[queue] = []
          done += 1
          continue
        }
        table.insert(.init(first: missing, last: missing + 4095, user: missing << 1, access: .read))
      }
    }
    #expect(done == queues && table.entries.count <= table.capacity)
  }

  /// Queues are not told of translations that are evicted; they are told of replaced ones.
  @Test func whatGoesForWantOfRoomIsNotTold() {
    var rig = Self.started(Self.formats[0])
    let capacity = UInt64(rig.session.translations.capacity)
    let address = Self.base + 0x1000_0000
    for page in 0...capacity { rig.send(.iotlb, Self.update(address + page * 8192, user: Rig.userBase)) }
    #expect(rig.session.translations.losses > 0 && rig.takeDeeds().isEmpty)
  }

  /// Each wait has its own age: the same request later is another wait.
  @Test func waitsAreToldApart() {
    var rig = Self.started(Self.formats[0])
    let miss = TranslationMiss(address: Self.base + 0x5_0000, access: .read)
    _ = rig.session.missed(queue: 0, miss)
    let last = rig.session.lastWait
    #expect(rig.session.waitsForTranslation && rig.session.waitSince(last)?.queue == 0)
    rig.send(.iotlb, Self.update(Self.base + 0x5_0000))
    #expect(!rig.session.waitsForTranslation)
    rig.send(.iotlb, Self.invalidate(Self.base + 0x5_0000, 4096))
    _ = rig.session.missed(queue: 0, miss)
    #expect(rig.session.waitsForTranslation && rig.session.waitSince(last) == nil)
  }
}

extension TranslationTable {
  fileprivate func holds(_ address: UInt64) -> Bool {
    var (low, high) = (0, entries.count)
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].last < address { low = middle + 1 } else { high = middle }
    }
    return low < entries.count && entries[low].first <= address
  }
}

/// Random numbers that are the same each time.
private struct SystemRandom {
  private var state: UInt64
  init(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state >> 8
  }
}
