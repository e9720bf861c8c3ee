/// Names of images in Ceph clusters.
import Testing

@testable import VirtioBlkDevice

@Suite struct RBDLocationTests {
  @Test(
    arguments: [
      ("rbd:pool/image", "pool", "", "image", nil, nil, nil),
      ("RBD:pool/space/image", "pool", "space", "image", nil, nil, nil),
      ("rbd:pool/image@before", "pool", "", "image", "before", nil, nil),
      ("rbd:p%20/i%2525@s%40?conf=/etc/a%26b&id=nova", "p ", "", "i%25", "s@", "/etc/a&b", "nova"),
      ("rbd:p/i?id=a", "p", "", "i", nil, nil, "a"),
    ] as [(String, String, String, String, String?, String?, String?)]) func whatANameSays(
      text: String, pool: String, namespace: String, image: String, snapshot: String?, configuration: String?, user: String?
    ) throws
  {
    let location = try RBDLocation(text)
    #expect(location.pool == pool && location.namespace == namespace && location.image == image)
    #expect(location.snapshot == snapshot && location.configuration == configuration && location.user == user)
    #expect(try RBDLocation(location.text) == location, "\(location.text)")
  }

  @Test(arguments: [
    ("rbd:", "pool and an image"), ("rbd:pool", "pool and an image"), ("rbd:a/b/c/d", "pool and an image"),
    ("rbd:/image", "the pool has no name"), ("rbd:pool/", "the image has no name"),
    ("rbd:pool//image", "the namespace has no name"),
    ("rbd:pool/image@", "the snapshot has no name"), ("rbd:pool/a%2fb", "the image has no name"),
    ("rbd:pool/image%00", "the image has no name"), ("rbd:pool/image:id=a", "follow a '?'"),
    ("rbd:pool/image?id", "needs a value"), ("rbd:pool/image?id=", "needs a value"),
    ("rbd:pool/image?id=a&id=b", "given twice"), ("rbd:pool/image?conf=a&conf=b", "given twice"),
    ("rbd:pool/image?id=client.a", "without 'client.'"), ("rbd:pool/image?user=a", "'user' is not known"),
  ]) func whatIsNoName(text: String, sentence: String) {
    #expect { try RBDLocation(text) } throws: { "\($0)".contains(sentence) && "\($0)".contains("write rbd:POOL/IMAGE") }
  }

  @Test func paths() throws {
    let location = try RBDLocation("rbd:p/i@s?conf=a.conf&id=b").mapPaths { "/here/" + $0 }
    #expect(location.text == "rbd:p/i@s?conf=/here/a.conf&id=b")
    #expect(location.name == "p/i@s")
  }

  /// Values as a person may have written them; a read-only disk cannot lose writes.
  @Test(
    arguments: [
      ("rbd_cache", "false", false, false), ("rbd_cache", "0", false, false), ("rbd_cache", "true", true, false),
      ("rbd_cache", "1", true, false), ("rbd_blocklist_on_break_lock", "1", false, false),
      ("rbd_blocklist_on_break_lock", "no", true, false), ("rbd_non_blocking_aio", "false", true, true),
      ("rbd_non_blocking_aio", "1", false, false), ("rbd_persistent_cache_mode", "rwl", true, false),
    ] as [(String, String, Bool, Bool)]) func whichSettingsAreRefused(
      name: String, value: String, toWriters: Bool, toReaders: Bool
    )
  {
    let settings = RBDSettings([.init(name: name, value: value, source: 2)])
    #expect(settings.others(isReadOnly: false).isEmpty == !toWriters)
    #expect(settings.others(isReadOnly: true).isEmpty == !toReaders)
  }
}
