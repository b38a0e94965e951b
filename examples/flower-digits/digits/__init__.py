"""A Flower app: scikit-learn's digits, a softmax regression in numpy."""
