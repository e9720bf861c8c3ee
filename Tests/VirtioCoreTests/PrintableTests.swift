/// File names on terminals and in logs.
import Testing
import VirtioCore

@Suite struct PrintableTests {
  @Test(arguments: [
    ("disk.img", "disk.img"), ("größer/δίσκος 1", "größer/δίσκος 1"), ("", ""), ("a\nb", "a\\nb"), ("\u{1b}[2J", "\\x1b[2J"),
    ("\r\n", "\\r\\n"), ("tab\there", "tab\\there"), ("\u{7f}\u{9b}", "\\x7f\\x9b"), ("\0", "\\x00"),
    ("\u{202e}gmi.ksid", "\\u{202e}gmi.ksid"), ("\u{2028}", "\\u{2028}"), ("\u{fffd}", "\u{fffd}"),
  ])
  func whatIsNoLetterIsEscaped(text: String, expected: String) {
    #expect(printable(text) == expected)
  }
}
