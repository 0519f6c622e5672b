"""The kinds of tasks by name."""

from tasks.classification import Classification, Regression
from tasks.kind import Kind
from tasks.multiple_choice import MultipleChoice
from tasks.parsing import Parsing
from tasks.question_answering import QuestionAnswering
from tasks.tagging import Tagging

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (Classification, Regression, MultipleChoice, Tagging, QuestionAnswering, Parsing)
}
