package main

func Example() {
	main()
	// Output:
	// order o-2 is rolled back: nobody has that much
	// 2 orders in the database, 2 messages wait
	// billing got order o-1 of ann for 12.50
	// billing got order o-3 of ann for 8.00
	// 2 messages sent, 0 wait
}
