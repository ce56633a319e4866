"""What a browser would see of a page: its tags with attributes, and all text."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """What a browser would see: tags with attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]
