/// Each check of vhost-user detects a back-end that breaks the protocol in one place.
import CLinux
import Foundation
import GuestDriver
import TestSupport
import Testing
import VirtioCore

@testable import Conform
@testable import Sockets
@testable import VhostUser

/// Sits between a front-end and a back-end, and forwards messages as its mutant prescribes.
final class Meddler: Sendable {
  let path: String
  private let listener: OwnedDescriptor
  private let stop: OwnedDescriptor
  private let ended = DispatchSemaphore(value: 0)

  init(folder: String, backend: String, _ mutant: WireMutant) throws {
    path = folder + "/meddler"
    listener = try UnixSocket.listen(at: path)
    stop = try .eventCounter()
    Thread.detachNewThread { [listener, stop, ended] in
      var memory = WireMutant.Memory()
      while !memory.isDead, Self.isReadable([listener.rawValue], or: stop.rawValue) != nil {
        guard let front = try? UnixSocket.accept(listener.rawValue) else { continue }
        memory.connections += 1
        memory.seen = [:]
        guard let other = try? UnixSocket.connect(to: backend) else { break }
        Self.pass(front, other, mutant, &memory, stop.rawValue)
      }
      // A front-end that waits to be accepted sees that the server is gone.
      shutdown(listener.rawValue, Int32(SHUT_RDWR))
      ended.signal()
    }
  }

  deinit {
    EventCounter.signal(stop.rawValue)
    ended.wait()
    unsafe unlink(path)
  }

  /// - Returns: the first readable descriptor; `nil` when it is to stop.
  private static func isReadable(_ descriptors: [Int32], or stop: Int32) -> Int? {
    var entries = (descriptors + [stop]).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    guard unsafe poll(&entries, nfds_t(entries.count), -1) > 0, entries[descriptors.count].revents == 0 else { return nil }
    return descriptors.indices.first { entries[$0].revents != 0 }
  }

  private static func send(_ message: Message, _ socket: Int32) {
    var writer = MessageWriter()
    writer.enqueue(message)
    while (try? writer.flush(socket)) != nil, !writer.isIdle { usleep(100) }
  }

  private static func pass(
    _ front: OwnedDescriptor, _ back: OwnedDescriptor, _ mutant: WireMutant, _ memory: inout WireMutant.Memory, _ stop: Int32
  ) {
    var (fromFront, fromBack) = (MessageReader(), MessageReader())
    while let side = isReadable([front.rawValue, back.rawValue], or: stop) {
      do {
        if side == 0 {
          switch try fromFront.read(front.rawValue) {
          case .ended: return
          case .nothingYet: break
          case .message(let message):
            if let kind = FrontendRequest(rawValue: message.request) { memory.seen[kind, default: 0] += 1 }
            let passed = mutant.request(message, &memory)
            if memory.isDead { return }
            if let passed {
              send(passed, back.rawValue)
            } else if message.request == FrontendRequest.getVringBase.rawValue {
              send(Message(replyTo: message.request, payload: message.payload), front.rawValue)
            } else if message.flags.contains(.needReply) || message.request == FrontendRequest.iotlb.rawValue {
              send(Message(replyTo: message.request, payload: WireMutant.number(0)), front.rawValue)
            }
          }
        } else {
          switch try fromBack.read(back.rawValue) {
          case .ended: return
          case .nothingYet: break
          case .message(let message): for message in mutant.reply(message, &memory) { send(message, front.rawValue) }
          }
        }
      } catch {
        if mutant.diesOfGarbage { memory.isDead = true }
        return
      }
    }
  }
}

@Suite struct WireMutantTests {
  @Test("a back-end that breaks the protocol is detected", arguments: WireMutants.all.map(\.check))
  func found(_ name: String) throws {
    let mutant = try #require(WireMutants.all.first { $0.check == name })
    // On a busy machine the fault may need more time to show: then the check gets more.
    var findings: [Finding] = []
    for factor in [1, 20, 400] where !findings.contains(where: { $0.outcome == .broken || $0.outcome == .wedged }) {
      var settings = Settings()
      settings.limit = .milliseconds(400 * factor)
      settings.settle = .milliseconds(60 * factor)
      findings = try Self.findings(mutant, settings)
    }
    #expect(
      findings.contains { $0.outcome == .broken || $0.outcome == .wedged }, "\(findings.map { "\($0.outcome): \($0.seen)" })")
  }

  /// If the relay itself broke something, every mutant would count as detected.
  @Test("without a fault the same check passes through the same relay", arguments: WireMutants.all.map(\.check))
  func passes(_ name: String) throws {
    let findings = try Self.findings(WireMutant(check: name), Settings())
    #expect(
      findings.allSatisfy { $0.outcome == .kept || $0.outcome == .rejected },
      "\(findings.map { "\($0.outcome): \($0.seen)" })")
    #expect(!findings.isEmpty)
  }

  private static func findings(_ mutant: WireMutant, _ settings: Settings) throws -> [Finding] {
    let check = try #require(Check.all.first { $0.name == mutant.check })
    let folder = try TemporaryDirectory()
    let own = try OwnDevice(OwnSetup(nil))
    let facts = try Runner().facts(SocketSubject(path: own.path))
    let meddler = try Meddler(folder: folder.path, backend: own.path, mutant)
    let subject = SocketSubject(path: meddler.path)
    defer { withExtendedLifetime((meddler, own)) {} }
    return check.formats(facts).map { Runner(settings: settings).make(check, $0, subject, facts) }
  }
}
