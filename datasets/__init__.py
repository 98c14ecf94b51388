"""What is learnt: task kinds, data sets, their contracts and their protocols. Imports neither `methods` nor
`benchmark`.
"""
