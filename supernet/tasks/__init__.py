"""What is trained: the loss, what a teacher teaches, and what a network is judged by."""

from supernet.tasks.classification import Classification
from supernet.tasks.multi_label import MultiLabel
from supernet.tasks.task import Task
from supernet.tasks.text import NextToken, TextClassification

__all__ = ["Classification", "MultiLabel", "NextToken", "Task", "TextClassification"]
