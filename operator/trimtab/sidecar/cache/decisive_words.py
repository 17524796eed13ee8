"""Words that the semantic cache treats specially; lower case, by line."""

DECISIVE = """
not no never none nobody nothing neither nor without cannot except excluding exclude non un
can't don't doesn't didn't isn't aren't wasn't weren't won't wouldn't shouldn't couldn't haven't hasn't hadn't mustn't
nicht kein keine keinen keiner nie ohne ne pas jamais sans aucun nunca sin sem nem senza niet geen
before after above below under over more less fewer greater smaller larger bigger most least maximum minimum max min
largest smallest biggest longest shortest highest lowest tallest nearest farthest youngest cheapest fastest slowest
increase decrease increasing decreasing raise lower down first last next previous earliest latest oldest newest
enable disable enabled disabled off open close opened closed start stop begin end add remove delete insert
import export encode decode encrypt decrypt compress decompress install uninstall allow deny accept reject
true false positive negative best worst good bad cheap expensive fast slow hot cold left right north south east west
buy sell borrow lend win lose input output read write push pull upload download send receive login logout
advantage advantages disadvantage disadvantages pros cons safe unsafe legal illegal possible impossible
always sometimes often rarely all only both same different unlike against from since until he she man woman male female
who whom whose when where why
one two three four five six seven eight nine ten eleven twelve dozen hundred thousand million billion half quarter
once twice double triple second third fourth fifth
seconds minute minutes hour hours day days week weeks month months year years decade century today tomorrow yesterday
monday tuesday wednesday thursday friday saturday sunday january february march april june july august
september october november december spring summer autumn fall winter am pm
celsius fahrenheit kelvin meter meters metre metres mile miles kilometer kilometers km cm mm inch inches foot feet
pound pounds kilogram kilograms gram grams kg ounce ounces liter liters litre litres gallon gallons dollar dollars
euro euros yen byte bytes kb mb gb tb percent
"""
"""Their presence, absence or place among others turns an answer round: negations, opposites, quantities, times,
units. English first; negations of some other languages. Of a pair that one word tells apart (on/off, up/down) only the
rarer word is listed."""

OPENERS = """
a an the i is are was were am be been do does did can could will would should might must shall have has had
what which how please tell give show explain describe list name find help let what's how's who's where's it's i'm i've
i'd in on at for of by as if it this that these those there here so then but because while my your our their his her
hi hello hey thanks thank okay ok yes well also just say define summarize summarise translate compare to and
"""
"""Words that are often capitalised only because a sentence begins with them; every other capital marks a name."""
