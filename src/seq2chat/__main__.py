from seq2chat.cli import main

main()
