/// Why a request is refused: one sentence.
package struct OperatorRefusal: Error, CustomStringConvertible {
  package let description: String
  package init(_ sentence: String) { description = sentence }
}
