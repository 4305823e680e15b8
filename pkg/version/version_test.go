package version

import "testing"

func TestParse(t *testing.T) {
	for _, test := range []struct {
		in      string
		numbers [3]int
		ok      bool
	}{
		{"v1.23.17", [3]int{1, 23, 17}, true},
		{"v1.24.9+k3s2", [3]int{1, 24, 9}, true},
		{"v1.23.17-eks-a5565ad", [3]int{1, 23, 17}, true},
		{"20.10.24+dfsg1", [3]int{20, 10, 24}, true},
		{"1.6.20~ds1", [3]int{1, 6, 20}, true},
		{"1.2.13.m.1", [3]int{1, 2, 13}, true},
		{"2.0.0-rc.1", [3]int{2, 0, 0}, true},
		{"4.19.0-25-amd64", [3]int{4, 19, 0}, true},
		{"1.7", [3]int{1, 7, 0}, true},
		{"1.7.", [3]int{1, 7, 0}, true},
		{" 19.03.15 ", [3]int{19, 3, 15}, true},
		{"Unknown", [3]int{}, false},
		{"", [3]int{}, false},
		{"v1", [3]int{}, false},
		{"1.x", [3]int{}, false},
		{"-1.2", [3]int{}, false},
		{"99999999999999999999.1", [3]int{}, false},
	} {
		got, ok := Parse(test.in)
		if numbers := [3]int{got.Major, got.Minor, got.Patch}; numbers != test.numbers || ok != test.ok {
			t.Errorf("Parse(%q) = %v, %t, want %v, %t", test.in, numbers, ok, test.numbers, test.ok)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, test := range []struct {
		text         string
		major, minor int
		want         bool
	}{
		{"20.10.24+dfsg1", 20, 10, true},
		{"19.03.15", 20, 10, false},
		{"23.0.0", 20, 10, true},
		{"2.0", 1, 6, true},
		{"2.0", 2, 1, false},
		{"", 0, 0, false},
		{"dev", 1, 0, false},
	} {
		if got := AtLeast(test.text, test.major, test.minor); got != test.want {
			t.Errorf("AtLeast(%q, %d, %d) = %t, want %t", test.text, test.major, test.minor, got, test.want)
		}
	}
}

func TestString(t *testing.T) {
	v, _ := Parse(" v1.6.20~ds1\n")
	if v.String() != "v1.6.20~ds1" || v.Numbers() != "1.6.20" || (Version{Major: 2, Minor: 1}).String() != "2.1.0" {
		t.Errorf("%s, %s", v, v.Numbers())
	}
}

// FuzzParse: the numbers of any text that is a version are read as the same version.
func FuzzParse(f *testing.F) {
	f.Add("v1.23.17")
	f.Add("1.6.20~ds1")
	f.Add("0.999999999.1")
	f.Fuzz(func(t *testing.T, s string) {
		v, ok := Parse(s)
		if !ok {
			return
		}
		again, ok := Parse(v.Numbers())
		if !ok || again.Compare(v) != 0 {
			t.Errorf("Parse(%q) = %+v, whose numbers are read as %+v, %t", s, v, again, ok)
		}
	})
}
