"""What a classifier of texts has to beat: counted words and logistic regression."""

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline


def fit_tfidf(texts: Sequence[str], labels: Sequence) -> Pipeline:
    """Logistic regression on the TF-IDF of words and pairs of words that at least two texts have."""
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    return classifier.fit(texts, labels)
