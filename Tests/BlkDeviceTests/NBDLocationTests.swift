/// URIs of exports: what they mean, and what is none.
import Testing

@testable import VirtioBlkDevice

@Suite struct NBDLocationTests {
  struct Case: Sendable, CustomTestStringConvertible {
    var uri: String
    var place: NBDLocation.Place
    var export: String
    var testDescription: String { uri }
    init(_ uri: String, _ place: NBDLocation.Place, _ export: String) {
      (self.uri, self.place, self.export) = (uri, place, export)
    }
  }

  @Test(arguments: [
    Case("nbd://host", .internet(host: "host", port: 10809), ""),
    Case("nbd://host/", .internet(host: "host", port: 10809), ""),
    Case("NBD://10.0.0.1:5/a/b", .internet(host: "10.0.0.1", port: 5), "a/b"),
    Case("nbd://[::1]:10810/x%20y", .internet(host: "::1", port: 10810), "x y"),
    Case("nbd://[fe80::1%25eth0]/", .internet(host: "fe80::1%eth0", port: 10809), ""),
    Case("nbd+unix:///?socket=/run/nbd", .unix(path: "/run/nbd"), ""),
    Case("nbd+unix:///disk?socket=a%2Fb", .unix(path: "a/b"), "disk"),
    Case("nbd+unix:////disk?socket=s", .unix(path: "s"), "/disk"),
  ]) func whatItMeans(test: Case) throws {
    let location = try NBDLocation(test.uri)
    #expect(location.place == test.place)
    #expect(location.export == test.export)
    #expect(location.text == test.uri)
  }

  @Test(arguments: [
    ("nbd", "scheme"), ("http://host/", "'http'"), ("nbds://host/", "TLS"), ("nbds+unix:///?socket=s", "TLS"),
    ("nbd:host", "'//'"),
    ("nbd:///x", "no host"), ("nbd://host:0/", "'0'"), ("nbd://host:65536/", "'65536'"), ("nbd://host:p/", "'p'"),
    ("nbd://[::1/", "'"), ("nbd://[::1]x/", "only a port"), ("nbd://me@host/", "user"), ("nbd://host/?socket=s", "nbd+unix"),
    ("nbd://host/%zz", "name"), ("nbd://host/%0", "name"), ("nbd://host/%00", "name"), ("nbd://host/%ff", "name"),
    ("nbd://host/" + String(repeating: "x", count: 4097), "4096"), ("nbd://host/#x", "%23"),
    ("nbd+unix:///disk", "no '?socket=PATH'"), ("nbd+unix:///?socket=", "no '?socket=PATH'"),
    ("nbd+unix://host/?socket=s", "no host"), ("nbd+unix:///?socket=a&socket=b", "once"), ("nbd+unix:///?tls=x", "'tls'"),
  ]) func whatIsNone(uri: String, sentence: String) throws {
    #expect { try NBDLocation(uri) } throws: { error in "\(error)".contains(sentence) && "\(error)".contains("write nbd://") }
  }

  /// A path that no socket can have is told before anybody is asked.
  @Test func aPathThatIsTooLong() throws {
    let path = "/" + String(repeating: "s", count: 108)
    let location = try NBDLocation("nbd+unix:///?socket=\(path)")
    #expect(throws: NBDFailure.noAddress(uri: location.text, "a socket's path has at most 107 bytes")) {
      try NBDAddress.all(of: location, isConfined: true)
    }
  }

  /// Names are for those who can still ask; numbers ask nobody.
  @Test func namesAndNumbersInASandbox() throws {
    #expect(try NBDAddress.all(of: NBDLocation("nbd://127.0.0.1/"), isConfined: true).count == 1)
    #expect(try NBDAddress.all(of: NBDLocation("nbd://[::1]/"), isConfined: true).count == 1)
    let name = try NBDLocation("nbd://localhost/")
    #expect(throws: NBDFailure.needsNumbers(uri: name.text)) { try NBDAddress.all(of: name, isConfined: true) }
  }
}
