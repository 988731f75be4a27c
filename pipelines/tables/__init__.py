"""Tables: folders of data files whose log says which of them, and which of their rows, are live. They know no job."""
