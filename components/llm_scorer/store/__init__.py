"""What is kept between runs, and the locks that go with it: in files of one machine, or in a database of several."""
