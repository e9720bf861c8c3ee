/// URIs of exports: how they are parsed, and which are refused.
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
    ("nbd", "scheme"), ("http://host/", "'http'"), ("nbds://host/", "'tls-certificates=FOLDER'"),
    ("nbds+unix:///?socket=s", "'tls-certificates=FOLDER'"),
    ("nbds://host/?tls-certificates=a&tls-psk-file=b", "one of"), ("nbds://host/?tls-psk-file=b", "which user's key"),
    ("nbds://me@host/?tls-psk-file=b&tls-username=you", "user is given twice"),
    ("nbds://me@host/?tls-certificates=a", "'tls-username' is not for"),
    ("nbds://host/?tls-certificates=a&tls-verify-peer=no", "true or false"),
    ("nbds://me@host/?tls-psk-file=b&tls-hostname=h", "'tls-hostname' is not for"),
    ("nbds+unix:///?socket=s&tls-certificates=a", "'tls-hostname=NAME'"),
    ("nbds://host/?tls-certificates=", "no value"), ("nbds://@host/?tls-psk-file=a", "the user has no value"),
    ("nbd://host/?tls-certificates=a", "for nbds"),
    ("nbd:host", "'//'"),
    ("nbd:///x", "no host"), ("nbd://host:0/", "'0'"), ("nbd://host:65536/", "'65536'"), ("nbd://host:p/", "'p'"),
    ("nbd://[::1/", "'"), ("nbd://[::1]x/", "only a port"), ("nbd://me@host/", "user"), ("nbd://host/?socket=s", "nbd+unix"),
    ("nbd://host/%zz", "name"), ("nbd://host/%0", "name"), ("nbd://host/%00", "name"), ("nbd://host/%ff", "name"),
    ("nbd://host/a\u{0}b", "name"), ("nbd+unix:///?socket=/a\u{0}b", "'socket' has no value"),
    ("nbd://host/" + String(repeating: "x", count: 4097), "4096"), ("nbd://host/#x", "%23"),
    ("nbd+unix:///disk", "no '?socket=PATH'"), ("nbd+unix:///?socket=", "'socket' has no value"),
    ("nbd+unix://host/?socket=s", "no host"), ("nbd+unix:///?socket=a&socket=b", "once"), ("nbd+unix:///?tls=x", "'tls'"),
  ]) func whatIsNone(uri: String, sentence: String) throws {
    #expect { try NBDLocation(uri) } throws: { error in "\(error)".contains(sentence) && "\(error)".contains("write nbd://") }
  }

  @Test(arguments: [
    ("nbds://host/a?tls-certificates=/pki", "/pki", nil as String?),
    ("nbds://host/a?tls-certificates=%2fpki&tls-hostname=other&tls-verify-peer=true", "/pki", "other"),
    ("nbds+unix:///a?socket=/s&tls-certificates=/pki&tls-verify-peer=false", "/pki", nil),
  ]) func certificates(uri: String, folder: String, verified: String?) throws {
    let credentials = try #require(try NBDLocation(uri).security).credentials
    let verifies = !uri.contains("tls-verify-peer=false")
    #expect(credentials == .certificates(folder: folder, verified: verified, verifiesPeer: verifies))
  }

  @Test(arguments: ["nbds://alice@host/?tls-psk-file=keys", "nbds://host/?tls-username=alice&tls-psk-file=keys"])
  func keys(uri: String) throws {
    let location = try NBDLocation(uri)
    #expect(location.security?.credentials == .key(file: "keys", user: "alice"))
    #expect(location.hasRelativePath)
  }

  /// The disk stays the same one when TLS is turned on: its serial number is derived from this.
  @Test(arguments: [
    ("nbds://alice@host:5/a?tls-psk-file=k", "nbd://host:5/a"), ("nbds://host?tls-certificates=k", "nbd://host"),
    ("nbds+unix:///a?tls-psk-file=k&socket=s&tls-username=b", "nbd+unix:///a?socket=s"), ("nbd://host/a", "nbd://host/a"),
    ("nbds+unix://alice@/a?socket=s&tls-psk-file=k", "nbd+unix:///a?socket=s"),
  ]) func whatNamesTheDisk(uri: String, identity: String) throws { #expect(try NBDLocation(uri).identity == identity) }

  /// Two processes compare these to find out whether they use the same export, wherever each of them was started.
  @Test(arguments: [
    ("nbds://alice@host/a%62?tls-psk-file=k", "nbd://host:10809/ab"), ("nbd://[::1]:5", "nbd://[::1]:5/"),
    ("nbd+unix:///a%3f?socket=s%23t", "nbd+unix:///a%3f?socket=/here/s%23t"),
    ("nbds+unix:///?tls-psk-file=k&socket=/s&tls-username=b", "nbd+unix:///?socket=/s"),
  ]) func whatNamesTheExportForAll(uri: String, name: String) throws {
    func absolute(_ path: String) -> String { path.hasPrefix("/") ? path : "/here/" + path }
    #expect(try NBDLocation(uri).common(absolute) == name)
    #expect(try NBDLocation(name).common(absolute) == name)
  }

  /// A path that is too long for a socket is refused before any attempt to connect.
  @Test func aPathThatIsTooLong() throws {
    let path = "/" + String(repeating: "s", count: 108)
    let location = try NBDLocation("nbd+unix:///?socket=\(path)")
    #expect(throws: NBDFailure.noAddress(uri: location.text, "a socket's path has at most 107 bytes")) {
      try NBDAddress.all(of: location, isConfined: true)
    }
  }

  /// A process without name resolution can still use numeric addresses.
  @Test func namesAndNumbersInASandbox() throws {
    #expect(try NBDAddress.all(of: NBDLocation("nbd://127.0.0.1/"), isConfined: true).count == 1)
    #expect(try NBDAddress.all(of: NBDLocation("nbd://[::1]/"), isConfined: true).count == 1)
    let name = try NBDLocation("nbd://localhost/")
    #expect(throws: NBDFailure.needsNumbers(uri: name.text)) { try NBDAddress.all(of: name, isConfined: true) }
  }

  /// The library's own words for a failed connection; names of files and exports in them must not mislead.
  @Test(arguments: [
    (
      "nbd://h/gnutls_x", "nbd_aio_connect_tcp: handshake: server has no export named 'gnutls_x': No such file",
      "no export named"
    ),
    ("nbd://h//tls", "nbd_aio_connect_tcp: handshake: server has no export named '/tls': No such file", "no export named"),
    ("nbd://h/", "nbd_aio_connect_tcp: handshake: server requires TLS encryption first: Not supported", "write nbds"),
    ("nbd+unix:///?socket=/tls/a", "nbd_aio_connect: connect: /tls/a: Connection refused", "does not answer"),
    (
      "nbd+unix:///?socket=/a%20server%20requires%20TLS/a",
      "nbd_aio_connect: connect: /a server requires TLS/a: Connection refused", "does not answer"
    ),
    (
      "nbds://h/?tls-certificates=/p/a%20gnutls_%20b",
      "nbd_aio_connect_tcp: connect: /p/a gnutls_ b/ca-cert.pem: Connection refused", "does not answer"
    ),
    ("nbds://h/?tls-certificates=/gnutls_", "nbd_aio_connect_tcp: gnutls_handshake: Error (1/2)", "its certificate is valid"),
    (
      "nbds://a@h/?tls-psk-file=/p/psk", "nbd_aio_connect_tcp: /p/psk: username a was not found in PSK file: Invalid argument",
      "has the key of"
    ),
    (
      "nbds://h/?tls-certificates=/p",
      "nbd_aio_connect_tcp: handshake: server refused TLS, but handle TLS setting is 'require' (2): No", "has no TLS"
    ),
  ]) func whyThereIsNoConnection(uri: String, reason: String, sentence: String) throws {
    #expect("\(NBDFailure.notConnected(try NBDLocation(uri), reason))".contains(sentence))
  }
}
