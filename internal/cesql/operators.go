package cesql

import (
	"errors"
	"fmt"
)

func literal(v Value) node { return func(Attributes) (Value, error) { return v, nil } }

func attribute(name string) node {
	missing := fmt.Errorf("%w: %s", ErrMissingAttribute, name) // once: most events of a topic may lack it
	return func(a Attributes) (Value, error) {
		value, ok := a.Get(name)
		if !ok {
			return Value{}, missing
		}
		return text(string(value)), nil
	}
}

func exists(name string) node {
	return func(a Attributes) (Value, error) {
		_, ok := a.Get(name)
		return truth(ok), nil
	}
}

func not(n node) node {
	return func(a Attributes) (Value, error) {
		v, err := n.as(kindBoolean, a)
		return truth(v.n == 0), err
	}
}

func negative(n node) node {
	return func(a Attributes) (Value, error) {
		v, err := n.as(kindInteger, a)
		return number(-v.n), err
	}
}

func both(left, right node) node {
	return func(a Attributes) (Value, error) {
		if l, err := left.as(kindBoolean, a); err != nil || l.n == 0 {
			return l, err
		}
		return right.as(kindBoolean, a)
	}
}

func either(left, right node) node {
	return func(a Attributes) (Value, error) {
		if l, err := left.as(kindBoolean, a); err != nil || l.n == 1 {
			return l, err
		}
		return right.as(kindBoolean, a)
	}
}

// differ is XOR.
func differ(left, right node) node {
	return func(a Attributes) (Value, error) {
		l, err := left.as(kindBoolean, a)
		if err != nil {
			return Value{}, err
		}
		r, err := right.as(kindBoolean, a)
		return truth(l.n != r.n), err
	}
}

// pair evaluates both before it casts either, so that a missing attribute comes before a cast that fails.
func pair(left, right node, of kind, a Attributes) (l, r Value, err error) {
	if l, err = left(a); err != nil {
		return l, r, err
	}
	if r, err = right(a); err != nil {
		return l, r, err
	}
	if l, err = l.cast(of); err != nil {
		return l, r, err
	}
	r, err = r.cast(of)
	return l, r, err
}

// equal casts what stands on the left to the kind of what stands on the right.
func equal(left, right node) node {
	return func(a Attributes) (Value, error) {
		l, r, err := pair(left, right, kindAny, a)
		if err != nil {
			return Value{}, err
		}
		l, err = l.cast(r.kind)
		return truth(l == r), err
	}
}

func compare(left, right node, holds func(l, r int32) bool) node {
	return func(a Attributes) (Value, error) {
		l, r, err := pair(left, right, kindInteger, a)
		return truth(holds(l.n, r.n)), err
	}
}

type operator func(l, r int32) (int32, error)

var errZero = errors.New("a division by zero")

func sum(l, r int32) (int32, error)        { return l + r, nil }
func difference(l, r int32) (int32, error) { return l - r, nil }
func product(l, r int32) (int32, error)    { return l * r, nil }

func quotient(l, r int32) (int32, error) {
	if r == 0 {
		return 0, errZero
	}
	return l / r, nil
}

func remainder(l, r int32) (int32, error) {
	if r == 0 {
		return 0, errZero
	}
	return l % r, nil
}

func arithmetic(left, right node, of operator) node {
	return func(a Attributes) (Value, error) {
		l, r, err := pair(left, right, kindInteger, a)
		if err != nil {
			return Value{}, err
		}
		n, err := of(l.n, r.n)
		return number(n), err
	}
}

// in casts each member of the set to the kind of what stands on the left.
func in(left node, set []node) node {
	return func(a Attributes) (Value, error) {
		l, err := left(a)
		if err != nil {
			return Value{}, err
		}
		for _, member := range set {
			m, err := member.as(l.kind, a)
			if err != nil {
				return Value{}, err
			}
			if l == m {
				return truth(true), nil
			}
		}
		return truth(false), nil
	}
}

func like(n node, pattern string) node {
	wanted := newPattern(pattern)
	return func(a Attributes) (Value, error) {
		v, err := n.as(kindText, a)
		if err != nil {
			return Value{}, err
		}
		return truth(wanted.match(v.text)), nil
	}
}
