/// Why something is not done: one sentence.
package struct OperatorRefusal: Error, CustomStringConvertible {
  package let description: String
  package init(_ sentence: String) { description = sentence }
}
